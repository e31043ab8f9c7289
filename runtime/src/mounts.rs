//! Mount options: the words of OCI and mount(8) into attributes.
//!
//! Owns the table of options (OCI runtime-spec, config.md, "Linux mount options"). Must not touch the filesystem.

use crate::sys::MountAttributes;

/// What a list of options means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// For mount_setattr(2) on the mount itself.
    pub(crate) attributes: MountAttributes,
    /// For mount_setattr(2) on the mount and all below.
    pub(crate) recursive_attributes: MountAttributes,
    /// A bind mount; recursive or not.
    pub(crate) bind: Option<bool>,
    /// Changes what is mounted there already.
    pub(crate) remount: bool,
    /// `MS_PRIVATE` and the like, and whether it reaches below.
    pub(crate) propagation: Option<(u64, bool)>,
    /// Starts a tmpfs with a copy of what it covers.
    pub(crate) copies_up: bool,
    /// The mount shows other ids than its source; with all below, or not.
    pub(crate) idmap: Option<bool>,
    /// The rest, for the filesystem: a key with its value, or a flag.
    pub(crate) filesystem: Vec<String>,
}

/// Name, attribute of mount_setattr(2), and whether the word clears instead of setting.
const WORDS: &[(&str, u64, bool)] = &[
    ("ro", libc::MOUNT_ATTR_RDONLY, false),
    ("rw", libc::MOUNT_ATTR_RDONLY, true),
    ("nosuid", libc::MOUNT_ATTR_NOSUID, false),
    ("suid", libc::MOUNT_ATTR_NOSUID, true),
    ("nodev", libc::MOUNT_ATTR_NODEV, false),
    ("dev", libc::MOUNT_ATTR_NODEV, true),
    ("noexec", libc::MOUNT_ATTR_NOEXEC, false),
    ("exec", libc::MOUNT_ATTR_NOEXEC, true),
    ("nodiratime", libc::MOUNT_ATTR_NODIRATIME, false),
    ("diratime", libc::MOUNT_ATTR_NODIRATIME, true),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, false),
    ("symfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, true),
];

/// When access times are written: one field with three values. What undoes a value leaves the kernel's default.
const ACCESS_TIME_WORDS: &[(&str, u64)] = &[
    ("relatime", libc::MOUNT_ATTR_RELATIME),
    ("noatime", libc::MOUNT_ATTR_NOATIME),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME),
    ("atime", libc::MOUNT_ATTR_RELATIME),
    ("norelatime", libc::MOUNT_ATTR_RELATIME),
    ("nostrictatime", libc::MOUNT_ATTR_RELATIME),
];

/// Flags of the filesystem as a whole that fsconfig(2) knows by these very words. A bind mount does not change them.
const FILESYSTEM_WORDS: &[&str] = &["sync", "async", "dirsync", "lazytime", "nolazytime"];

/// Words without an effect: `silent` is about the kernel's log, mandatory locks are gone since Linux 5.15, and every
/// filesystem with a change counter keeps it without being asked since Linux 6.1.
const WORDS_WITHOUT_EFFECT: &[&str] = &["defaults", "silent", "loud", "mand", "nomand", "iversion", "noiversion"];

/// How mounts spread between namespaces, and whether the word reaches below.
const PROPAGATION_WORDS: &[(&str, u64, bool)] = &[
    ("private", libc::MS_PRIVATE, false),
    ("rprivate", libc::MS_PRIVATE, true),
    ("slave", libc::MS_SLAVE, false),
    ("rslave", libc::MS_SLAVE, true),
    ("unbindable", libc::MS_UNBINDABLE, false),
    ("runbindable", libc::MS_UNBINDABLE, true),
    ("shared", libc::MS_SHARED, false),
    ("rshared", libc::MS_SHARED, true),
];

/// Words that stand for themselves.
const OTHER_WORDS: &[&str] = &["bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap"];

/// Lists every mount option that means something to this runtime, in order; all others go to the filesystem.
pub fn mount_options() -> Vec<String> {
    let plain = WORDS.iter().map(|word| word.0).chain(ACCESS_TIME_WORDS.iter().map(|word| word.0));
    let recursive: Vec<String> = plain.clone().map(|word| format!("r{word}")).collect();
    let propagation = PROPAGATION_WORDS.iter().map(|word| word.0);
    let lists = [FILESYSTEM_WORDS, WORDS_WITHOUT_EFFECT, OTHER_WORDS].into_iter().flatten().copied();
    let mut all: Vec<String> = plain.chain(propagation).chain(lists).map(String::from).chain(recursive).collect();
    all.sort();
    all
}

/// Reads the value of `linux.rootfsPropagation`.
pub(crate) fn propagation(word: &str) -> Option<(u64, bool)> {
    PROPAGATION_WORDS.iter().find(|(name, ..)| *name == word).map(|(_, flag, recursive)| (*flag, *recursive))
}

impl Options {
    /// Reads the words in order; a later word wins over an earlier one.
    pub(crate) fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Options {
        let mut options = Options::default();
        for word in words {
            options.add(word);
        }
        options
    }

    /// Whether the mount itself is to be read-only.
    pub(crate) fn read_only(&self) -> bool {
        self.attributes.set & libc::MOUNT_ATTR_RDONLY != 0
    }

    fn add(&mut self, word: &str) {
        match word {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copies_up = true,
            "idmap" => self.idmap = Some(self.idmap.unwrap_or(false)),
            "ridmap" => self.idmap = Some(true),
            _ if WORDS_WITHOUT_EFFECT.contains(&word) || self.attributes.add(word) => {}
            // `rro`, `rnosuid`, …: the same for everything below.
            _ if word.strip_prefix('r').is_some_and(|word| self.recursive_attributes.add(word)) => {}
            _ => match propagation(word) {
                Some(propagation) => self.propagation = Some(propagation),
                None => self.filesystem.push(word.into()),
            },
        }
    }
}

impl MountAttributes {
    /// Takes a word, if it is about the attributes of a mount.
    fn add(&mut self, word: &str) -> bool {
        if let Some((_, attribute, clears)) = WORDS.iter().find(|(name, ..)| *name == word) {
            let (add, remove) =
                if *clears { (&mut self.clear, &mut self.set) } else { (&mut self.set, &mut self.clear) };
            *add |= attribute;
            *remove &= !attribute;
            return true;
        }
        let Some((_, attribute)) = ACCESS_TIME_WORDS.iter().find(|(name, _)| *name == word) else { return false };
        self.set = self.set & !libc::MOUNT_ATTR__ATIME | attribute;
        // The kernel wants the whole field cleared when any of its values is set.
        self.clear |= libc::MOUNT_ATTR__ATIME;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Options {
        Options::parse(words.split(',').filter(|word| !word.is_empty()))
    }

    #[test]
    fn words_become_attributes_and_the_rest_is_the_filesystem_s() {
        let options = parse("nosuid,noexec,nodev,mode=755,size=64k,ro,sync,defaults,silent");
        let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NODEV;
        assert_eq!(options.attributes.set, set | libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.filesystem, ["mode=755", "size=64k", "sync"]);
        assert_eq!(options.bind, None);
    }

    #[test]
    fn the_last_word_wins() {
        let options = parse("ro,rw,suid,nosuid,noatime,atime,slave,rshared");
        assert_eq!(options.attributes.set, libc::MOUNT_ATTR_NOSUID);
        assert_eq!(options.attributes.clear, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR__ATIME);
        assert_eq!(options.propagation, Some((libc::MS_SHARED, true)));
    }

    #[test]
    fn recursive_words_reach_below() {
        let options = parse("rbind,rro,rslave,noatime,rnostrictatime");
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.recursive_attributes.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.recursive_attributes.clear, libc::MOUNT_ATTR__ATIME);
        assert_eq!(options.propagation, Some((libc::MS_SLAVE, true)));
        assert_eq!(options.attributes.set, libc::MOUNT_ATTR_NOATIME);
        assert_eq!(options.attributes.clear, libc::MOUNT_ATTR__ATIME);
        // The later of the two does not make a recursive bind flat again.
        assert_eq!(parse("rbind,bind").bind, Some(true));
    }

    /// config.md, "Linux mount options".
    #[test]
    fn every_word_of_the_specification_is_known() {
        let table = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev \
                     nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private \
                     ratime rbind rdev rdiratime relatime remount rexec rnoatime rnodiratime rnoexec rnorelatime \
                     rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid \
                     rsymfollow runbindable rw shared silent slave strictatime suid symfollow sync tmpcopyup unbindable \
                     idmap ridmap";
        let known = mount_options();
        for word in table.split_whitespace() {
            assert!(known.iter().any(|option| option == word), "{word}");
            let for_the_filesystem = FILESYSTEM_WORDS.contains(&word);
            assert_eq!(!parse(word).filesystem.is_empty(), for_the_filesystem, "{word}");
        }
    }
}
