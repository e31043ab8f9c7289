//! Under which licences others' code comes, and where from: deny.toml's rules checked against `cargo metadata`,
//! without a network. Advisories need one and are `cargo deny check`'s business.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// The part of deny.toml that needs no network.
#[derive(Debug, Deserialize)]
pub(super) struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

impl Rules {
    /// Reads deny.toml.
    ///
    /// # Errors
    /// A table that is needed is missing.
    pub(super) fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("deny.toml")
    }

    /// Whether an SPDX expression can be met with allowed licences. `AND` binds more than `OR`; `A/B` is the old
    /// way to write `A OR B`.
    fn allows(&self, expression: &str) -> bool {
        let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let mut rest = words.as_slice();
        let met = self.any_of(&mut rest);
        met && rest.is_empty()
    }

    fn any_of(&self, words: &mut &[&str]) -> bool {
        let mut met = self.all_of(words);
        while let Some((&"OR", rest)) = words.split_first() {
            *words = rest;
            // The right side is read in any case.
            met |= self.all_of(words);
        }
        met
    }

    fn all_of(&self, words: &mut &[&str]) -> bool {
        let mut met = self.one(words);
        while let Some((&"AND", rest)) = words.split_first() {
            *words = rest;
            met &= self.one(words);
        }
        met
    }

    fn one(&self, words: &mut &[&str]) -> bool {
        let Some((&first, rest)) = words.split_first() else { return false };
        *words = rest;
        if first == "(" {
            let met = self.any_of(words);
            let Some((&")", rest)) = words.split_first() else { return false };
            *words = rest;
            return met;
        }
        let mut name = first.to_owned();
        if let [with @ "WITH", exception, rest @ ..] = *words {
            name = format!("{name} {with} {exception}");
            *words = rest;
        }
        self.licenses.allow.contains(&name)
    }
}

/// Checks every package of `cargo metadata` that is not ours.
pub(super) fn check(rules: &Rules, metadata: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    // With a platform named, only what its builds resolve to counts.
    let resolved: Vec<&Value> =
        metadata["resolve"]["nodes"].as_array().into_iter().flatten().map(|node| &node["id"]).collect();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let Some(source) = package["source"].as_str() else { continue };
        if !resolved.contains(&&package["id"]) {
            continue;
        }
        let name = package["name"].as_str().unwrap_or_default();
        let full = format!("{name} {}", package["version"].as_str().unwrap_or_default());
        if !source.starts_with("registry+https://github.com/rust-lang/crates.io-index") {
            findings.push(format!("{full}: comes from {source}, not from crates.io"));
        }
        match package["license"].as_str() {
            Some(licence) if rules.allows(licence) => {}
            Some(licence) => findings.push(format!("{full}: deny.toml does not allow its licence, {licence}")),
            None => findings.push(format!("{full}: names no licence")),
        }
        if let Some(banned) = rules.bans.deny.iter().find(|banned| banned.name == name) {
            findings.push(format!("{full}: deny.toml bans it: {}", banned.reason));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules() -> Rules {
        Rules::parse(
            "[licenses]\nallow = [\"MIT\", \"Apache-2.0\", \"Unicode-3.0\", \"Apache-2.0 WITH LLVM-exception\"]\n\
             [bans]\ndeny = [{ crate = \"openssl-sys\", reason = \"does not link static\" }]\n",
        )
        .unwrap()
    }

    #[test]
    fn expressions_are_met_or_not() {
        let rules = rules();
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(MIT OR Zlib) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
            "GPL-3.0 OR (MIT AND Apache-2.0)",
        ] {
            assert!(rules.allows(good), "{good}");
        }
        for bad in
            ["GPL-3.0", "MIT AND GPL-3.0", "", "(MIT", "MIT MIT", "(Zlib OR GPL-3.0) AND MIT", "Apache-2.0 WITH x"]
        {
            assert!(!rules.allows(bad), "{bad}");
        }
    }

    #[test]
    fn sources_bans_and_licences_are_named() {
        let registry = "registry+https://github.com/rust-lang/crates.io-index";
        let package = |name: &str, licence: &str, source: Option<&str>| json!({ "name": name, "id": name, "version": "1.0.0", "license": licence, "source": source });
        let packages = [
            package("good", "MIT", Some(registry)),
            package("ours", "Proprietary", None),
            package("openssl-sys", "MIT", Some(registry)),
            package("viral", "GPL-3.0", Some(registry)),
            package("git", "MIT", Some("git+https://example.org/git")),
            package("elsewhere", "GPL-3.0", Some(registry)),
        ];
        let nodes: Vec<Value> =
            packages.iter().filter(|one| one["name"] != "elsewhere").map(|one| json!({ "id": one["id"] })).collect();
        let findings = check(&rules(), &json!({ "packages": packages, "resolve": { "nodes": nodes } }));
        assert_eq!(findings.len(), 3, "{findings:#?}");
        assert!(findings.iter().any(|finding| finding == "openssl-sys 1.0.0: deny.toml bans it: does not link static"));
    }
}
