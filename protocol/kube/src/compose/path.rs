//! Paths as text: relative ones are put below a folder, and `.` and `..` are resolved.

/// Puts a path below a folder where it is relative, and resolves `.`, `..` and a leading `~`.
pub(super) fn join(folder: &str, path: &str, home: &str) -> String {
    let whole = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
        _ if path.starts_with('/') => path.to_owned(),
        _ => format!("{folder}/{path}"),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The folder that a file is in.
pub(super) fn folder(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((folder, _)) => folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        for (path, whole) in [
            ("a/b", "/srv/shop/a/b"),
            ("./a/../../b", "/srv/b"),
            ("/etc//x/.", "/etc/x"),
            ("~/x", "/root/x"),
            ("~x", "/srv/shop/~x"),
            ("../../../..", "/"),
        ] {
            assert_eq!(join("/srv/shop", path, "/root"), whole);
        }
        assert_eq!(folder("/a/b.yml"), "/a");
        assert_eq!(folder("/b.yml"), "/");
    }
}
