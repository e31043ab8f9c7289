//! From the files of a Compose project to one document in its long form: variables, `include`, `extends`, several
//! files over each other, profiles.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use skeg_protocol::Invalid;

use super::interpolate::{self, Variables};
use super::merge::merge;
use super::{ComposeFault, Files, MAX_FILE, Request, dotenv, normal, path};
use crate::cursor::{Cursor, Fault, Fields};
use crate::yaml;

/// Most files that one project may be made of.
const MOST_FILES: usize = 64;
/// Deepest chain of `extends` and `include`.
const DEEPEST: usize = 16;

const TOP: Fields = Fields {
    read: &["name", "services", "networks", "volumes", "secrets", "configs", "include"],
    ignored: &["version"],
    unsupported: &["models"],
};

/// A project in one document.
#[derive(Debug)]
pub(super) struct Project {
    /// Its name, as people write it.
    pub(super) name: String,
    /// The long form of all files together, without services that no active profile has.
    pub(super) document: Value,
    /// Services that only profiles which are not active have.
    pub(super) inactive: BTreeSet<String>,
    /// What variables are known.
    pub(super) variables: Variables,
    /// Where each service was said last, for complaints.
    pub(super) origin: BTreeMap<String, String>,
}

/// Reads files, and counts them.
pub(super) struct Loader<'a> {
    files: &'a dyn Files,
    home: String,
    left: usize,
    origin: BTreeMap<String, String>,
}

fn fault(file: &str) -> impl Fn(Fault) -> ComposeFault + '_ {
    move |fault| ComposeFault { file: file.to_owned(), fault }
}

fn wrong(file: &str, field: &str, problem: String) -> ComposeFault {
    ComposeFault { file: file.to_owned(), fault: Invalid { field: field.to_owned(), problem }.into() }
}

/// Reads a project.
pub(super) fn load(request: &Request, files: &dyn Files) -> Result<(Project, usize), ComposeFault> {
    let Some(first) = request.files.first() else {
        return Err(wrong("", "", "no Compose file was named".to_owned()));
    };
    let folder = path::folder(first).to_owned();
    let home = request.variables.get("HOME").cloned().unwrap_or_else(|| "/root".to_owned());
    let mut loader = Loader { files, home, left: MOST_FILES, origin: BTreeMap::new() };
    let variables = loader.with_env_file(&request.variables, &path::join(&folder, ".env", ""), false)?;
    let mut document = json!({});
    for file in &request.files {
        let one = loader.document(file, &folder, &variables, 0)?;
        document = merge(document, one, "");
    }
    let written = document["name"].as_str().map(str::to_owned);
    let name = request.project.clone().or_else(|| variables.get("COMPOSE_PROJECT_NAME").cloned()).or(written);
    let name = name.filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| folder.rsplit('/').next().unwrap_or_default().to_owned());
    let mut profiles: BTreeSet<String> = request.profiles.iter().cloned().collect();
    let told = variables.get("COMPOSE_PROFILES").map(String::as_str).unwrap_or_default();
    profiles.extend(told.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned));
    let inactive = leave_out(&mut document, &profiles);
    let left = loader.left;
    Ok((Project { name, document, inactive, variables, origin: loader.origin }, left))
}

/// Takes away the services that no active profile has, and names them.
fn leave_out(document: &mut Value, profiles: &BTreeSet<String>) -> BTreeSet<String> {
    let mut inactive = BTreeSet::new();
    let Some(services) = document.get_mut("services").and_then(Value::as_object_mut) else { return inactive };
    services.retain(|name, service| {
        let list = service["profiles"].as_array().map(Vec::as_slice).unwrap_or_default();
        let wanted = |profile: &Value| profile.as_str().is_some_and(|name| name == "*" || profiles.contains(name));
        let active = list.is_empty() || profiles.contains("*") || list.iter().any(wanted);
        if !active {
            inactive.insert(name.clone());
        }
        active
    });
    inactive
}

impl Loader<'_> {
    fn read(&mut self, file: &str) -> Result<String, ComposeFault> {
        let bytes = self.bytes(file)?;
        String::from_utf8(bytes).map_err(|_| wrong(file, "", "is no text in UTF-8".to_owned()))
    }

    /// The variables and those of a `.env` file below them, where there is one.
    fn with_env_file(&mut self, variables: &Variables, file: &str, needed: bool) -> Result<Variables, ComposeFault> {
        if !needed && !self.files.exists(file) {
            return Ok(variables.clone());
        }
        let text = self.read(file)?;
        let parsed = dotenv::parse(&text, variables).map_err(|problem| wrong(file, "", problem))?;
        let mut out: Variables = parsed.into_iter().collect();
        out.extend(variables.clone());
        Ok(out)
    }

    /// One file with all that it includes and extends, in its long form.
    fn document(
        &mut self,
        file: &str,
        folder: &str,
        variables: &Variables,
        depth: usize,
    ) -> Result<Value, ComposeFault> {
        if depth > DEEPEST {
            return Err(wrong(file, "include", format!("files include each other more than {DEEPEST} deep")));
        }
        let mut document = self.parse(file, folder, variables)?;
        let mut resolved = Map::new();
        let services = document["services"].as_object().cloned().unwrap_or_default();
        for name in services.keys() {
            self.origin.insert(name.clone(), file.to_owned());
            let service = self.extended(file, folder, &services, name, variables, 0)?;
            resolved.insert(name.clone(), service);
        }
        document["services"] = resolved.into();
        let top = Cursor::new(&document, "");
        let mut out = json!({});
        for include in top.items("include").map_err(fault(file))? {
            let included = self.include(&include, file, folder, variables, depth)?;
            for kind in ["services", "networks", "volumes", "secrets", "configs"] {
                let mine = document[kind].as_object();
                let both = included[kind].as_object().into_iter().flatten();
                let mut both = both.filter(|(name, value)| {
                    let other = mine.and_then(|mine| mine.get(*name)).or_else(|| out[kind].get(*name));
                    other.is_some_and(|other| other != *value)
                });
                if let Some((name, _)) = both.next() {
                    return Err(wrong(file, "include", format!("{kind}.{name} is there already")));
                }
            }
            out = merge(out, included, "");
        }
        if let Some(map) = document.as_object_mut() {
            map.remove("include");
        }
        Ok(merge(out, document, ""))
    }

    /// Parses a file and brings it into its long form.
    fn parse(&mut self, file: &str, folder: &str, variables: &Variables) -> Result<Value, ComposeFault> {
        let text = self.read(file)?;
        let mut document = yaml::parse_one(&text).map_err(|error| wrong(file, "", error.to_string()))?;
        interpolate::document(&mut document, "", variables).map_err(fault(file))?;
        let map = document.as_object_mut().into_iter().flat_map(|map| map.keys().cloned().collect::<Vec<_>>());
        let further: Vec<String> = map.filter(|key| key.starts_with("x-")).collect();
        for key in further {
            document.as_object_mut().and_then(|map| map.remove(&key));
        }
        Cursor::new(&document, "").fields(&TOP).map_err(fault(file))?;
        normal::file(&document, folder, &self.home).map_err(fault(file))
    }

    fn include(
        &mut self,
        at: &Cursor<'_>,
        file: &str,
        folder: &str,
        variables: &Variables,
        depth: usize,
    ) -> Result<Value, ComposeFault> {
        let complain = fault(file);
        let long = match at.value() {
            Value::String(path) => json!({"path": path}),
            long => long.clone(),
        };
        let at = Cursor::new(&long, at.path());
        at.fields(&Fields { read: &["path", "project_directory", "env_file"], ignored: &[], unsupported: &[] })
            .map_err(&complain)?;
        let paths = texts(&at.need("path").map_err(&complain)?).map_err(&complain)?;
        let paths: Vec<String> = paths.iter().map(|written| path::join(folder, written, &self.home)).collect();
        let Some(first) = paths.first() else { return Err(complain(at.invalid("names no file"))) };
        let own = match at.get("project_directory").map_err(&complain)? {
            Some(own) => path::join(folder, own.text().map_err(&complain)?, &self.home),
            None => path::folder(first).to_owned(),
        };
        let mut inner = variables.clone();
        match at.get("env_file").map_err(&complain)? {
            Some(list) => {
                for written in texts(&list).map_err(&complain)? {
                    inner = self.with_env_file(&inner, &path::join(folder, &written, &self.home), true)?;
                }
            }
            None => inner = self.with_env_file(&inner, &path::join(&own, ".env", ""), false)?,
        }
        let mut out = json!({});
        for path in &paths {
            let one = self.document(path, &own, &inner, depth + 1)?;
            out = merge(out, one, "");
        }
        if let Some(map) = out.as_object_mut() {
            map.remove("name");
        }
        Ok(out)
    }

    /// A service with what it extends below it.
    fn extended(
        &mut self,
        file: &str,
        folder: &str,
        services: &Map<String, Value>,
        name: &str,
        variables: &Variables,
        depth: usize,
    ) -> Result<Value, ComposeFault> {
        let field = format!("services.{name}.extends");
        let mut service = services.get(name).cloned().unwrap_or(Value::Null);
        let extends = service.as_object_mut().and_then(|map| map.remove("extends"));
        let Some(extends) = extends.filter(|value| !value.is_null()) else { return Ok(service) };
        if depth > DEEPEST {
            return Err(wrong(file, &field, format!("services extend each other more than {DEEPEST} deep")));
        }
        let complain = fault(file);
        let at = Cursor::new(&extends, &field);
        at.fields(&Fields { read: &["service", "file"], ignored: &[], unsupported: &[] }).map_err(&complain)?;
        let other = at.need("service").and_then(|at| at.text()).map_err(&complain)?;
        let missing = |file: &str| wrong(file, &field, format!("there is no service {other:?}"));
        let base = match at.get("file").map_err(&complain)? {
            None => {
                services.get(other).ok_or_else(|| missing(file))?;
                self.extended(file, folder, services, other, variables, depth + 1)?
            }
            Some(written) => {
                let path = path::join(folder, written.text().map_err(&complain)?, &self.home);
                let own = path::folder(&path).to_owned();
                let document = self.parse(&path, &own, variables)?;
                let there = document["services"].as_object().cloned().unwrap_or_default();
                there.get(other).ok_or_else(|| missing(&path))?;
                self.extended(&path, &own, &there, other, variables, depth + 1)?
            }
        };
        Ok(merge(base, service, ""))
    }

    /// The rest of the files that may be read.
    pub(super) fn resume<'a>(files: &'a dyn Files, left: usize) -> Loader<'a> {
        Loader { files, home: String::new(), left, origin: BTreeMap::new() }
    }

    /// Variables of an `env_file`.
    pub(super) fn env_file(
        &mut self,
        file: &str,
        raw: bool,
        needed: bool,
        variables: &Variables,
    ) -> Result<Vec<(String, String)>, ComposeFault> {
        if !needed && !self.files.exists(file) {
            return Ok(Vec::new());
        }
        let text = self.read(file)?;
        if raw {
            let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
            let split = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
            return Ok(lines.filter_map(split).collect());
        }
        dotenv::parse(&text, variables).map_err(|problem| wrong(file, "", problem))
    }

    /// The bytes of a file.
    pub(super) fn bytes(&mut self, file: &str) -> Result<Vec<u8>, ComposeFault> {
        let problem = |problem: String| wrong(file, "", problem);
        self.left = self.left.checked_sub(1).ok_or_else(|| problem(format!("more than {MOST_FILES} files")))?;
        let bytes = self.files.read(file).map_err(problem)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(problem(format!("is larger than {MAX_FILE} bytes")));
        }
        Ok(bytes)
    }
}

/// Texts of a list, or the only one.
fn texts(at: &Cursor<'_>) -> Result<Vec<String>, Fault> {
    match at.value() {
        Value::Array(items) => {
            let text = |item: &Value| item.as_str().map(str::to_owned).ok_or_else(|| at.invalid("must hold texts"));
            items.iter().map(text).collect()
        }
        _ => Ok(vec![at.text()?.to_owned()]),
    }
}
