//! One Compose file over another, both in their long form: maps are joined, lists are joined item by item, and single
//! values give way.

use serde_json::{Map, Value};

/// Lists of whole words, which replace each other.
const REPLACED: [&str; 3] = ["command", "entrypoint", "test"];

/// By what the items of a list are told apart; `None` is by all that they say.
fn identity(list: &str, item: &Value) -> String {
    let field = match list {
        "volumes" | "devices" => "target",
        "secrets" | "configs" => "source",
        "env_file" => "path",
        _ => return item.to_string(),
    };
    item[field].to_string()
}

/// Puts `over` over `base`. `name` is the field that both are.
pub(super) fn merge(base: Value, over: Value, name: &str) -> Value {
    match (base, over) {
        (base, Value::Null) => base,
        (Value::Object(base), Value::Object(over)) => maps(base, over).into(),
        (Value::Array(base), Value::Array(over)) if !REPLACED.contains(&name) => {
            let mut out = base;
            for item in over {
                let same = out.iter_mut().find(|other| identity(name, other) == identity(name, &item));
                match same {
                    Some(other) => *other = item,
                    None => out.push(item),
                }
            }
            out.into()
        }
        (_, over) => over,
    }
}

fn maps(mut base: Map<String, Value>, over: Map<String, Value>) -> Map<String, Value> {
    // Options belong to their driver.
    let driver = |map: &Map<String, Value>| map.get("driver").cloned();
    if base.contains_key("options") && over.contains_key("driver") && driver(&base) != driver(&over) {
        base.remove("options");
    }
    for (key, value) in over {
        let merged = match base.remove(&key) {
            Some(before) => merge(before, value, &key),
            None => value,
        };
        base.insert(key, merged);
    }
    base
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_of_field_has_its_way() {
        let base = json!({
            "image": "a:1", "command": ["a", "b"], "environment": {"A": "1", "B": "2"},
            "volumes": [{"target": "/a", "source": "x"}, {"target": "/b"}], "cap_add": ["CHOWN"],
            "logging": {"driver": "json-file", "options": {"max-size": "1m"}},
            "healthcheck": {"test": ["CMD", "a"], "interval": "1s"},
        });
        let over = json!({
            "image": "a:2", "command": ["c"], "environment": {"B": null, "C": "3"},
            "volumes": [{"target": "/a", "source": "y"}], "cap_add": ["CHOWN", "KILL"],
            "logging": {"driver": "local"}, "healthcheck": {"test": ["CMD", "b"]},
        });
        let merged = json!({
            "image": "a:2", "command": ["c"], "environment": {"A": "1", "B": "2", "C": "3"},
            "volumes": [{"target": "/a", "source": "y"}, {"target": "/b"}], "cap_add": ["CHOWN", "KILL"],
            "logging": {"driver": "local"}, "healthcheck": {"test": ["CMD", "b"], "interval": "1s"},
        });
        assert_eq!(merge(base, over, ""), merged);
    }
}
