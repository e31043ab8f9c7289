//! Answers about images, for people.

use serde_json::Value;
use skeg_images::Reference;

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it came.
    Json,
    /// Not at all.
    Nothing,
    /// One line a name.
    List,
    /// The digest.
    Digest,
    /// Digests and names.
    Imported,
    /// What was removed.
    Removed,
    /// What was removed, and what that gave.
    Pruned,
    /// What was right and what was not.
    Verified,
    /// One line a kind.
    Usage,
}

/// Renders an answer and says the exit code.
pub fn show(answer: &Value, form: Form) -> (String, i32) {
    let code = i32::from(answer["broken"].as_array().is_some_and(|broken| !broken.is_empty()));
    let text = match form {
        Form::Json => format!("{answer:#}\n"),
        Form::Nothing => String::new(),
        Form::List => table(answer),
        Form::Digest => lines("", &answer["digest"]),
        Form::Imported => {
            let image = |image: &Value| format!("{}{}", lines("", &image["digest"]), lines("  ", &image["names"]));
            items(answer).iter().map(image).collect()
        }
        Form::Removed => lines("untagged: ", &answer["untagged"]) + &lines("removed: ", &answer["removed"]),
        Form::Pruned => lines("removed: ", &answer["removed"]) + &format!("freed: {}\n", size(&answer["freed"])),
        Form::Verified => verified(answer),
        Form::Usage => usage(answer),
    };
    (text, code)
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A text, or each of a list, on a line of its own.
fn lines(head: &str, value: &Value) -> String {
    let texts = value.as_str().into_iter().chain(items(value).iter().filter_map(Value::as_str));
    texts.map(|text| format!("{head}{text}\n")).collect()
}

/// Bytes as people read them.
pub fn size(value: &Value) -> String {
    let bytes = value.as_u64().unwrap_or(0);
    let mut unit = 1u64;
    for name in ["B", "KiB", "MiB", "GiB"] {
        if bytes / unit < 1024 || name == "GiB" {
            let tenths = u128::from(bytes) * 10 / u128::from(unit);
            let whole = name == "B" || tenths >= 1000;
            return if whole {
                format!("{} {name}", tenths / 10)
            } else {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            };
        }
        unit *= 1024;
    }
    String::new()
}

/// Repository and tag, as short as they may be.
fn parts(name: &str) -> (String, String) {
    let Ok(reference) = name.parse::<Reference>() else { return (name.to_owned(), String::new()) };
    let familiar = reference.familiar();
    match reference.tag() {
        Some(tag) => (familiar.strip_suffix(&format!(":{tag}")).unwrap_or(&familiar).to_owned(), tag.to_owned()),
        None => (familiar.split('@').next().unwrap_or(&familiar).to_owned(), "<none>".to_owned()),
    }
}

fn table(answer: &Value) -> String {
    let mut rows = vec![["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE", "STATE"].map(str::to_owned)];
    for image in items(answer) {
        let short = |field: &str| {
            let digits = image[field].as_str().unwrap_or_default().trim_start_matches("sha256:");
            digits.get(..12).unwrap_or("<none>").to_owned()
        };
        let state = match (image["whole"].as_bool(), image["needed"].as_bool()) {
            (Some(false), _) => "broken",
            (_, Some(true)) => "in use",
            _ => "unused",
        };
        // The day, and not how long ago: a device's clock may be wrong.
        let created = image["created"].as_str().and_then(|time| time.get(..10)).unwrap_or("<none>");
        let mut names: Vec<_> = items(&image["names"]).iter().filter_map(Value::as_str).map(parts).collect();
        if names.is_empty() {
            names.push(("<none>".to_owned(), "<none>".to_owned()));
        }
        for (repository, tag) in names {
            let (digest, id, size) = (short("digest"), short("id"), size(&image["size"]));
            rows.push([repository, tag, digest, id, created.to_owned(), size, state.to_owned()]);
        }
    }
    crate::commands::columns(&rows)
}

fn verified(answer: &Value) -> String {
    let count = |field: &str| items(&answer[field]).len();
    let mut text = lines("set aside: ", &answer["broken"]);
    text += &lines("to be pulled again: ", &answer["incomplete"]);
    if answer["shallow"].as_u64().unwrap_or(0) > 0 {
        text += &format!("layers checked by names and sizes only: {}\n", answer["shallow"]);
    }
    text + &format!("whole: {} images, {} layers with {}\n", count("images"), answer["layers"], size(&answer["bytes"]))
}

fn usage(answer: &Value) -> String {
    let heads = [
        ("files of layers", "files"),
        ("records of layers", "records"),
        ("manifests", "blobs"),
        ("downloads under way", "partial"),
        ("of it, not needed", "reclaimable"),
        ("free", "free"),
    ];
    let mut rows =
        vec![["images".to_owned(), answer["images"].to_string()], ["layers".to_owned(), answer["layers"].to_string()]];
    rows.extend(heads.map(|(head, field)| [head.to_owned(), size(&answer[field])]));
    crate::commands::columns(&rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_are_read_at_a_glance() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (52_428_800, "50.0 MiB"),
            (250 << 20, "250 MiB"),
            (u64::MAX, "17179869183 GiB"),
        ] {
            assert_eq!(size(&json!(bytes)), text);
        }
    }

    #[test]
    fn a_list_has_a_line_for_each_name() {
        let id = format!("sha256:{}", "ab".repeat(32));
        let image = json!({
            "digest": id, "id": id, "size": 1 << 20, "needed": true, "whole": true, "created": "2026-01-02T03:04:05Z",
            "names": ["docker.io/library/nginx:1.27", "localhost:5000/a/b@".to_owned() + &id],
        });
        let broken = json!({"digest": id, "id": null, "size": 0, "needed": false, "whole": false, "names": []});
        let wanted = "\
REPOSITORY          TAG     DIGEST        IMAGE ID      CREATED     SIZE     STATE
nginx               1.27    abababababab  abababababab  2026-01-02  1.0 MiB  in use
localhost:5000/a/b  <none>  abababababab  abababababab  2026-01-02  1.0 MiB  in use
<none>              <none>  abababababab  <none>        <none>      0 B      broken
";
        assert_eq!(show(&json!([image, broken]), Form::List), (wanted.to_owned(), 0));
    }

    #[test]
    fn a_verify_that_finds_something_exits_with_1() {
        let good = json!({"images": ["a"], "incomplete": [], "layers": 2, "shallow": 0, "bytes": 2048, "broken": []});
        assert_eq!(show(&good, Form::Verified), ("whole: 1 images, 2 layers with 2.0 KiB\n".to_owned(), 0));
        let mut bad = good;
        bad["broken"] = json!(["layer sha256:1: its mode"]);
        let (text, code) = show(&bad, Form::Verified);
        assert!(text.starts_with("set aside: layer sha256:1: its mode\n") && code == 1, "{text}");
    }
}
