//! Platforms and the choice of one manifest out of an image index.
//!
//! Owns which architecture and variant fits which machine (OCI image-spec, image-index.md). It fetches nothing.

use std::fmt;

use oci_spec::image::{Descriptor, ImageIndex};
use thiserror::Error;

/// What a machine runs: Linux on an architecture, by Go's names (`amd64`, `arm64`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// GOARCH: `amd64`, `arm64`.
    pub architecture: String,
    /// Variant of the architecture: `v8` on arm64; none on amd64.
    pub variant: Option<String>,
}

/// No manifest of the index fits.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the image has nothing for {wanted}; it has {}", list(.there))]
pub struct NoPlatform {
    /// What this machine needs.
    pub wanted: Platform,
    /// What the index lists, at most 20 of them.
    pub there: Vec<String>,
}

fn list(there: &[String]) -> String {
    if there.is_empty() { "nothing at all".to_owned() } else { there.join(", ") }
}

impl Platform {
    /// Returns the platform that this program was built for.
    pub fn host() -> Platform {
        match std::env::consts::ARCH {
            "x86_64" => Platform { architecture: "amd64".to_owned(), variant: None },
            "aarch64" => Platform { architecture: "arm64".to_owned(), variant: Some("v8".to_owned()) },
            other => Platform { architecture: other.to_owned(), variant: None },
        }
    }

    /// Tells how well a manifest for this OS, architecture and variant runs here; smaller is better, `None` not at all.
    fn fit(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<u8> {
        if os != "linux" || architecture != self.architecture {
            return None;
        }
        let plain = |variant: Option<&str>| match (self.architecture.as_str(), variant) {
            // arm64 without a variant is v8, amd64 without one is v1: both forms are in use.
            ("arm64", Some("v8")) | ("amd64", Some("v1")) | (_, Some("")) => None,
            (_, other) => other.map(str::to_owned),
        };
        let (mine, theirs) = (plain(self.variant.as_deref()), plain(variant));
        match theirs {
            theirs if theirs == mine => Some(0),
            None => Some(1),
            Some(_) => None,
        }
    }

    /// Tells whether an image whose configuration says this runs here.
    pub(crate) fn runs(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        self.fit(os, architecture, variant).is_some()
    }

    /// Chooses the manifest of an index that runs here; the first of the best.
    pub fn select<'a>(&self, index: &'a ImageIndex) -> Result<&'a Descriptor, NoPlatform> {
        let fit = |descriptor: &Descriptor| {
            let platform = descriptor.platform().as_ref()?;
            self.fit(&platform.os().to_string(), &platform.architecture().to_string(), platform.variant().as_deref())
        };
        index
            .manifests()
            .iter()
            .filter_map(|descriptor| Some((fit(descriptor)?, descriptor)))
            .min_by_key(|(fit, _)| *fit)
            .map(|(_, descriptor)| descriptor)
            .ok_or_else(|| NoPlatform { wanted: self.clone(), there: describe(index) })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// Lists the index's platforms; build attestations (`unknown/unknown`) are no platform.
fn describe(index: &ImageIndex) -> Vec<String> {
    let text = |descriptor: &Descriptor| match descriptor.platform() {
        Some(platform) => {
            let variant = platform.variant().as_deref().map(|variant| format!("/{variant}")).unwrap_or_default();
            let text = format!("{}/{}{variant}", platform.os(), platform.architecture());
            text.chars().take(60).collect()
        }
        None => "a manifest without a platform".to_owned(),
    };
    index.manifests().iter().map(text).filter(|text| text != "unknown/unknown").take(20).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> ImageIndex {
        let manifests: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(number, (os, architecture, variant))| {
                serde_json::json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": format!("sha256:{number:064x}"), "size": 1,
                    "platform": {"os": os, "architecture": architecture, "variant": variant},
                })
            })
            .collect();
        serde_json::from_value(serde_json::json!({"schemaVersion": 2, "manifests": manifests})).unwrap()
    }

    fn chosen(platform: &Platform, platforms: &[(&str, &str, Option<&str>)]) -> Option<usize> {
        let index = index(platforms);
        let descriptor = platform.select(&index).ok()?;
        index.manifests().iter().position(|other| other == descriptor)
    }

    #[test]
    fn arm64_fits_with_and_without_v8() {
        let arm = Platform { architecture: "arm64".to_owned(), variant: Some("v8".to_owned()) };
        assert_eq!(chosen(&arm, &[("linux", "amd64", None), ("linux", "arm64", None)]), Some(1));
        assert_eq!(chosen(&arm, &[("linux", "arm", Some("v7")), ("linux", "arm64", Some("v8"))]), Some(1));
        let plain = Platform { architecture: "arm64".to_owned(), variant: None };
        assert_eq!(chosen(&plain, &[("linux", "arm64", Some("v8"))]), Some(0));
        assert_eq!(chosen(&arm, &[("linux", "arm64", Some("v9"))]), None);
    }

    #[test]
    fn other_systems_and_attestations_are_passed_over() {
        let amd = Platform { architecture: "amd64".to_owned(), variant: None };
        let there = [("unknown", "unknown", None), ("windows", "amd64", None), ("linux", "amd64", None)];
        assert_eq!(chosen(&amd, &there), Some(2));
        // x86-64-v3 code may not run on any amd64 machine.
        assert_eq!(chosen(&amd, &[("linux", "amd64", Some("v3")), ("linux", "amd64", None)]), Some(1));
    }

    #[test]
    fn the_error_lists_what_there_is() {
        let amd = Platform { architecture: "amd64".to_owned(), variant: None };
        let index = index(&[("linux", "arm64", Some("v8")), ("linux", "s390x", None), ("unknown", "unknown", None)]);
        let error = amd.select(&index).unwrap_err().to_string();
        assert_eq!(error, "the image has nothing for linux/amd64; it has linux/arm64/v8, linux/s390x");
    }
}
