//! The store over redb: one file, one durable transaction a change.

use std::fs::OpenOptions;
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;
use skeg_protocol::message::Epoch;

use super::history::{Expired, History, Watch};
use super::placed::Placed;
use super::seal::{Seal, is_sealed};
use super::{Action, Change, Guard, Key, Key32, List, Store, StoreError, revision_of};

const OBJECTS: TableDefinition<'_, (&str, &str, &str), &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";

/// The database file and the changes that it made lately.
#[derive(Debug)]
pub(crate) struct Database {
    pub(super) redb: redb::Database,
    /// Of the revisions that this process makes.
    pub(super) epoch: Epoch,
    history: Mutex<History>,
    placed: Mutex<Placed>,
    /// Whether something is committed that is not durable yet.
    unsettled: AtomicBool,
    pub(super) seal: Seal,
}

/// Runs what waits for the disk without holding up the other tasks of this thread.
pub(crate) fn on_disk<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(work)
        }
        _ => work(),
    }
}

impl Database {
    /// Opens the database, or makes it; Secrets in it are sealed with `key`.
    ///
    /// # Errors
    /// The file cannot be opened, is in use by another process, or is damaged.
    pub(crate) fn open(path: &Path, key: &Key32) -> Result<Self, StoreError> {
        let failed = |error: redb::Error| StoreError::Open { path: path.to_owned(), source: Box::new(error) };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(|error| failed(redb::Error::Io(error)))?;
        let redb = redb::Builder::new().create_file(file).map_err(|error| failed(error.into()))?;
        let write = redb.begin_write()?;
        write.open_table(OBJECTS)?;
        super::keys::create(&write)?;
        super::tokens::create(&write)?;
        super::manifests::create(&write)?;
        super::pending::create(&write)?;
        super::tags::create(&write)?;
        super::users::create(&write)?;
        let revision = skip_revisions(&write)?;
        write.commit()?;
        let mut epoch = Epoch::default();
        SystemRandom::new().fill(&mut epoch).map_err(|_| StoreError::Random)?;
        let database = Database {
            redb,
            epoch,
            history: Mutex::new(History::new(revision)),
            placed: Mutex::default(),
            unsettled: AtomicBool::new(false),
            seal: Seal::new(key)?,
        };
        for pod in database.list("Pod", None)?.items {
            let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
            database.placed().note(&Key::new("Pod", &text("namespace"), &text("name")), Some(&pod));
        }
        Ok(database)
    }

    /// Runs one write transaction; it is rolled back when `work` fails.
    pub(super) fn write<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        on_disk(|| {
            let write = self.redb.begin_write().map_err(StoreError::from)?;
            let out = work(&write)?;
            write.commit().map_err(StoreError::from)?;
            Ok(out)
        })
    }

    fn encode(&self, key: &Key, object: &Value) -> Result<Vec<u8>, StoreError> {
        let bytes = object.to_string().into_bytes();
        if is_sealed(&key.kind) { self.seal.seal(key, bytes) } else { Ok(bytes) }
    }

    fn decode(&self, place: (&str, &str, &str), bytes: &[u8]) -> Result<Value, StoreError> {
        let key = Key::new(place.0, place.1, place.2);
        let opened = if is_sealed(&key.kind) { Some(self.seal.open(&key, bytes)?) } else { None };
        serde_json::from_slice(opened.as_deref().unwrap_or(bytes))
            .map_err(|error| StoreError::Damaged { what: key.to_string(), reason: error.to_string() })
    }

    fn placed(&self) -> std::sync::MutexGuard<'_, Placed> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pods of a node.
    pub(crate) fn pods_of(&self, node: &str) -> Result<Vec<(Key, Value)>, StoreError> {
        let keys = self.placed().of(node);
        let mut pods = Vec::new();
        for key in keys {
            pods.extend(self.get(&key)?.map(|pod| (key, pod)));
        }
        Ok(pods)
    }

    /// Makes durable what is not yet.
    pub(crate) fn settle(&self) -> Result<(), StoreError> {
        if self.unsettled.swap(false, Ordering::Relaxed) {
            on_disk(|| self.redb.begin_write()?.commit().map_err(StoreError::from))?;
        }
        Ok(())
    }

    /// Runs one change of objects and publishes it in the order of commits.
    fn change(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(Value, Option<Change>), StoreError>,
    ) -> Result<Value, StoreError> {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        on_disk(|| {
            let mut write = self.redb.begin_write()?;
            let (value, change) = work(&write)?;
            match change {
                Some(change) => {
                    // Its device tells a status again, and a thousand a second must not wait for the disk one by one.
                    let soft = change.action == Action::Modified && !change.beyond_status;
                    if soft && write.set_durability(Durability::None).is_ok() {
                        self.unsettled.store(true, Ordering::Relaxed);
                    }
                    write.commit()?;
                    let object = (change.action != Action::Deleted).then_some(change.object.as_ref());
                    self.placed().note(&change.key, object);
                    history.publish(change);
                }
                // An empty commit would still wait for the disk: a fleet that comes back reports much that is known.
                None => write.abort()?,
            }
            Ok(value)
        })
    }
}

/// Leaves out numbers that an earlier process may have given out and not made durable: a watcher that saw one must not
/// take something else for it.
fn skip_revisions(write: &WriteTransaction) -> Result<u64, StoreError> {
    /// More than are given out within a second.
    const SKIPPED: u64 = 1 << 20;
    let mut meta = write.open_table(META)?;
    let Some(revision) = meta.get(REVISION)?.map(|value| value.value()) else { return Ok(0) };
    meta.insert(REVISION, revision + SKIPPED)?;
    Ok(revision + SKIPPED)
}

/// Counts the revision up.
fn next_revision(write: &WriteTransaction) -> Result<u64, StoreError> {
    let mut meta = write.open_table(META)?;
    let revision = meta.get(REVISION)?.map_or(0, |value| value.value()) + 1;
    meta.insert(REVISION, revision)?;
    Ok(revision)
}

/// Keys of a kind, in one namespace or all. Names sort below `\u{10ffff}`.
fn range<'a>(kind: &'a str, namespace: Option<&'a str>) -> RangeInclusive<(&'a str, &'a str, &'a str)> {
    const LAST: &str = "\u{10ffff}";
    match namespace {
        Some(namespace) => (kind, namespace, "")..=(kind, namespace, LAST),
        None => (kind, "", "")..=(kind, LAST, LAST),
    }
}

/// Whether two states differ in more than `status` and the resource version.
fn beyond_status(old: &Value, new: &Value) -> bool {
    let strip = |value: &Value| {
        let mut value = value.clone();
        if let Some(object) = value.as_object_mut() {
            object.remove("status");
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("resourceVersion");
            }
        }
        value
    };
    strip(old) != strip(new)
}

impl Store for Database {
    fn get(&self, key: &Key) -> Result<Option<Value>, StoreError> {
        let table = self.redb.begin_read()?.open_table(OBJECTS)?;
        let key = (key.kind.as_str(), key.namespace.as_str(), key.name.as_str());
        table.get(key)?.map(|bytes| self.decode(key, bytes.value())).transpose()
    }

    fn list(&self, kind: &str, namespace: Option<&str>) -> Result<List, StoreError> {
        let read = self.redb.begin_read()?;
        let revision = read.open_table(META)?.get(REVISION)?.map_or(0, |value| value.value());
        let mut items = Vec::new();
        for entry in read.open_table(OBJECTS)?.range(range(kind, namespace))? {
            let (key, bytes) = entry?;
            items.push(self.decode(key.value(), bytes.value())?);
        }
        Ok(List { items, revision })
    }

    fn put(&self, key: &Key, mut object: Value, guard: Guard) -> Result<Value, StoreError> {
        self.change(|write| {
            let place = (key.kind.as_str(), key.namespace.as_str(), key.name.as_str());
            let mut table = write.open_table(OBJECTS)?;
            let old = table.get(place)?.map(|bytes| self.decode(place, bytes.value())).transpose()?;
            match (&old, guard) {
                (Some(_), Guard::Absent) => return Err(StoreError::Exists(key.clone())),
                (None, Guard::Revision(_)) => return Err(StoreError::NotFound(key.clone())),
                (Some(old), Guard::Revision(expected)) if revision_of(old) != expected => {
                    return Err(StoreError::Conflict { key: key.clone(), expected, found: revision_of(old) });
                }
                _ => {}
            }
            if let Some(old) = &old {
                object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
                if *old == object {
                    return Ok((object, None));
                }
            }
            let revision = next_revision(write)?;
            object["metadata"]["resourceVersion"] = Value::String(revision.to_string());
            table.insert(place, self.encode(key, &object)?.as_slice())?;
            let (action, beyond_status) = match &old {
                Some(old) => (Action::Modified, beyond_status(old, &object)),
                None => (Action::Added, true),
            };
            let (key, new) = (key.clone(), Arc::new(object.clone()));
            let change = Change { revision, action, key, object: new, old: old.map(Arc::new), beyond_status };
            Ok((object, Some(change)))
        })
    }

    fn remove(&self, key: &Key) -> Result<Value, StoreError> {
        self.change(|write| {
            let place = (key.kind.as_str(), key.namespace.as_str(), key.name.as_str());
            let mut table = write.open_table(OBJECTS)?;
            let old = table.remove(place)?.map(|bytes| self.decode(place, bytes.value())).transpose()?;
            let mut object = old.ok_or_else(|| StoreError::NotFound(key.clone()))?;
            let revision = next_revision(write)?;
            object["metadata"]["resourceVersion"] = Value::String(revision.to_string());
            let change = Change {
                revision,
                action: Action::Deleted,
                key: key.clone(),
                object: Arc::new(object.clone()),
                old: None,
                beyond_status: true,
            };
            Ok((object, Some(change)))
        })
    }

    fn watch(&self, since: Option<u64>) -> Result<Watch, Expired> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).watch(since)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::update;

    fn open() -> (tempfile::TempDir, Database) {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("store.redb"), &[7; 32]).unwrap();
        (folder, database)
    }

    fn pod(name: &str) -> (Key, Value) {
        (Key::new("Pod", "default", name), json!({"metadata": {"name": name}, "spec": {"a": 1}}))
    }

    #[test]
    fn versions_grow_and_guard_against_lost_updates() {
        let (_folder, store) = open();
        let (key, object) = pod("a");
        let first = store.put(&key, object.clone(), Guard::Absent).unwrap();
        assert!(matches!(store.put(&key, object, Guard::Absent), Err(StoreError::Exists(_))));
        let mut changed = first.clone();
        changed["spec"]["a"] = json!(2);
        let second = store.put(&key, changed, Guard::Revision(revision_of(&first))).unwrap();
        assert!(revision_of(&second) > revision_of(&first));
        let late = store.put(&key, first.clone(), Guard::Revision(revision_of(&first)));
        assert!(matches!(late, Err(StoreError::Conflict { expected: 1, found: 2, .. })));
    }

    #[test]
    fn what_is_already_so_is_not_written_again() {
        let (_folder, store) = open();
        let (key, object) = pod("a");
        store.put(&key, object, Guard::Absent).unwrap();
        update(&store, &key, |pod| pod["spec"]["a"] = json!(1)).unwrap();
        assert_eq!(store.list("Pod", None).unwrap().revision, 1);
    }

    #[test]
    fn lists_stay_in_their_namespace_and_kind() {
        let (_folder, store) = open();
        for (kind, namespace, name) in [("Pod", "a", "x"), ("Pod", "ab", "y"), ("Pod", "b", "z"), ("Node", "", "n")] {
            store.put(&Key::new(kind, namespace, name), json!({"name": name}), Guard::Absent).unwrap();
        }
        let names = |namespace| -> Vec<String> {
            let list = store.list("Pod", namespace).unwrap();
            list.items.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(None), ["x", "y", "z"]);
        assert_eq!(names(Some("a")), ["x"]);
        assert_eq!(store.list("Node", None).unwrap().items.len(), 1);
    }

    #[test]
    fn pods_of_a_node_are_found_also_by_a_later_process() {
        let (folder, store) = open();
        for (name, node) in [("a", "kiln-7"), ("b", "kiln-70"), ("c", "kiln-7")] {
            let object = json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"nodeName": node}});
            store.put(&Key::new("Pod", "default", name), object, Guard::Absent).unwrap();
        }
        let names = |store: &Database| -> Vec<String> {
            store.pods_of("kiln-7").unwrap().into_iter().map(|(key, _)| key.name).collect()
        };
        assert_eq!(names(&store), ["a", "c"]);
        store.remove(&Key::new("Pod", "default", "a")).unwrap();
        assert_eq!(names(&store), ["c"]);
        update(&store, &Key::new("Pod", "default", "c"), |pod| pod["status"] = json!({"phase": "Running"})).unwrap();
        store.settle().unwrap();
        drop(store);
        let store = Database::open(&folder.path().join("store.redb"), &[7; 32]).unwrap();
        assert_eq!(names(&store), ["c"]);
        assert_eq!(store.pods_of("kiln-7").unwrap()[0].1["status"]["phase"], "Running");
    }

    #[test]
    fn a_secret_lies_sealed_on_the_disk_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let key = Key::new("Secret", "default", "a");
        let store = Database::open(&path, &[7; 32]).unwrap();
        let kept = store.put(&key, json!({"data": {"a": "hush-hush-hush"}}), Guard::Absent).unwrap();
        drop(store);
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(4).any(|window| window == b"hush"));
        let store = Database::open(&path, &[7; 32]).unwrap();
        assert_eq!(store.get(&key).unwrap(), Some(kept.clone()));
        assert_eq!(store.list("Secret", None).unwrap().items, [kept]);
        drop(store);
        let stranger = Database::open(&path, &[8; 32]).unwrap().get(&key).unwrap_err().to_string();
        assert!(stranger.contains("Secret default/a") && stranger.contains("identity/secrets.key"), "{stranger}");
    }

    #[tokio::test]
    async fn a_watch_repeats_what_it_missed_and_follows() {
        let (_folder, store) = open();
        let (key, object) = pod("a");
        let first = store.put(&key, object, Guard::Absent).unwrap();
        let mut watch = store.watch(Some(0)).unwrap();
        update(&store, &key, |pod| pod["status"] = json!({"phase": "Running"})).unwrap();
        store.remove(&key).unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let change = watch.next().await.unwrap().unwrap();
            seen.push((change.action, change.revision, change.beyond_status));
        }
        assert_eq!(seen, [(Action::Added, 1, true), (Action::Modified, 2, false), (Action::Deleted, 3, true)]);
        assert_eq!(revision_of(&first), 1);
    }

    #[test]
    fn a_watch_from_before_the_process_began_is_told_to_list_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let (key, object) = pod("a");
        Database::open(&path, &[7; 32]).unwrap().put(&key, object, Guard::Absent).unwrap();
        let store = Database::open(&path, &[7; 32]).unwrap();
        // Number 1, and what may have followed it without becoming durable.
        assert_eq!(store.watch(Some(1)).err(), Some(Expired));
        assert_eq!(store.watch(Some(1000)).err(), Some(Expired));
        assert!(store.watch(Some(store.list("Pod", None).unwrap().revision)).is_ok());
    }
}
