//! Hostile documents: YAML of Kubernetes and of Compose. It owns the promise that reading them ends, never panics, and
//! gives a manifest that can be sent or a complaint.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skeg_kube::{Bundle, Files, Node, Request, convert_compose, convert_documents, show, yaml};
use skeg_protocol::manifest::Image;

/// Every file has the same content.
struct Same<'a>(&'a [u8]);

impl Files for Same<'_> {
    fn read(&self, _: &str) -> Result<Vec<u8>, String> {
        Ok(self.0.to_vec())
    }

    fn exists(&self, path: &str) -> bool {
        !path.ends_with("/.env")
    }
}

fn image(reference: &str) -> Result<Image, String> {
    Ok(Image { reference: reference.to_owned(), ..Image::default() })
}

fn check(bundle: Bundle) {
    assert!(!show(&bundle).is_null());
    if let Ok(manifest) = bundle.into_manifest() {
        assert!(manifest.validate().is_ok());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let request = Request {
        files: vec!["/srv/p/compose.yml".to_owned()],
        profiles: vec!["*".to_owned()],
        ..Request::default()
    };
    if let Ok(composed) = convert_compose(&request, &Same(bytes), &image) {
        check(composed.bundle);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(documents) = yaml::parse(text) else { return };
    if let Ok(bundle) = convert_documents(&documents, &Node::default(), &image) {
        check(bundle);
    }
});
