//! A real OCI image of one layer, made from Debian's static busybox.

use std::collections::HashMap;

use serde_json::json;
use skeg_protocol::Digest;

/// What a registry serves: path to media type and content.
pub type Served = HashMap<String, (String, Vec<u8>)>;

/// The repository of the image.
pub const REPOSITORY: &str = "demo";

/// SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    Digest(out)
}

fn layer() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        match link {
            Some(link) => tar.append_link(&mut header, path, link).unwrap(),
            None => tar.append_data(&mut header, path, content).unwrap(),
        }
    };
    for folder in ["bin", "etc", "tmp"] {
        add(folder, tar::EntryType::Directory, 0o755, &[], None);
    }
    add("bin/busybox", tar::EntryType::Regular, 0o755, &busybox, None);
    for applet in ["sh", "cat", "tail", "httpd", "usleep", "id", "wc", "sleep", "stty", "chown", "stat"] {
        add(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, &[], Some("busybox"));
    }
    add("etc/passwd", tar::EntryType::Regular, 0o644, b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n", None);
    tar.into_inner().unwrap()
}

/// Makes the image and gives its digest and everything that a registry must serve for it.
pub fn make() -> (Digest, Served) {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let layer = layer();
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": ["/bin/sh", "-c"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&layer).to_string()]},
    })
    .to_string()
    .into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| {
        let media = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media, "digest": sha256(bytes).to_string(), "size": bytes.len()})
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config), "layers": [descriptor("layer.v1.tar", &layer)],
    })
    .to_string()
    .into_bytes();
    let digest = sha256(&manifest);
    let blob = |bytes: &[u8]| format!("/v2/{REPOSITORY}/blobs/{}", sha256(bytes));
    let octets = "application/octet-stream".to_owned();
    let served = HashMap::from([
        (blob(&config), (octets.clone(), config)),
        (blob(&layer), (octets, layer)),
        (
            format!("/v2/{REPOSITORY}/manifests/{digest}"),
            ("application/vnd.oci.image.manifest.v1+json".to_owned(), manifest),
        ),
    ]);
    (digest, served)
}
