//! Label selectors as objects carry them (`matchLabels`, `matchExpressions`). Pure.

use serde_json::Value;

/// Whether labels are selected. A selector that is missing selects nothing; an empty one selects everything.
pub(crate) fn matches(selector: &Value, labels: &Value) -> bool {
    let Some(map) = selector.as_object() else { return false };
    let mut pairs = map.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    let mut expressions = map.get("matchExpressions").and_then(Value::as_array).into_iter().flatten();
    pairs.all(|(name, value)| labels[name] == *value) && expressions.all(|rule| holds(rule, labels))
}

/// Whether labels have all pairs of a plain map, as Services select. An empty map selects nothing.
pub(crate) fn has_all(map: &Value, labels: &Value) -> bool {
    let map = map.as_object().filter(|map| !map.is_empty());
    map.is_some_and(|map| map.iter().all(|(name, value)| labels[name] == *value))
}

/// Whether one expression (`key`, `operator`, `values`) holds; `Gt` and `Lt` are those of node affinity.
pub(crate) fn holds(rule: &Value, labels: &Value) -> bool {
    let found = &labels[rule["key"].as_str().unwrap_or_default()];
    let values = rule["values"].as_array().map(Vec::as_slice).unwrap_or_default();
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<i64>().ok());
    let bound = || values.first().and_then(number);
    match rule["operator"].as_str() {
        Some("In") => values.contains(found),
        Some("NotIn") => !values.contains(found),
        Some("Exists") => !found.is_null(),
        Some("DoesNotExist") => found.is_null(),
        Some("Gt") => number(found).zip(bound()).is_some_and(|(found, bound)| found > bound),
        Some("Lt") => number(found).zip(bound()).is_some_and(|(found, bound)| found < bound),
        _ => false,
    }
}

/// A selector as a query writes it: `app=web,tier in (a,b)`.
pub(crate) fn text(selector: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pairs = selector["matchLabels"].as_object().into_iter().flatten();
    let mut parts: Vec<String> = pairs.map(|(name, value)| format!("{name}={}", word(value))).collect();
    for rule in selector["matchExpressions"].as_array().into_iter().flatten() {
        let (key, values) = (word(&rule["key"]), rule["values"].as_array().cloned().unwrap_or_default());
        let values = values.iter().map(word).collect::<Vec<_>>().join(",");
        parts.push(match rule["operator"].as_str() {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key,
        });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_select_as_kubernetes_does() {
        let labels = json!({"app": "web", "tier": "front", "cores": "4"});
        let rule = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        for selector in [
            json!({}),
            json!({"matchLabels": {"app": "web"}}),
            rule("app", "In", &["db", "web"]),
            rule("x", "NotIn", &["y"]),
            rule("tier", "Exists", &[]),
            rule("x", "DoesNotExist", &[]),
            rule("cores", "Gt", &["3"]),
            rule("cores", "Lt", &["5"]),
        ] {
            assert!(matches(&selector, &labels), "{selector}");
        }
        for selector in [
            Value::Null,
            json!({"matchLabels": {"app": "db"}}),
            rule("app", "In", &["db"]),
            rule("app", "NotIn", &["web"]),
            rule("x", "Exists", &[]),
            rule("app", "DoesNotExist", &[]),
            rule("cores", "Gt", &["4"]),
            rule("app", "Odd", &[]),
        ] {
            assert!(!matches(&selector, &labels), "{selector}");
        }
        assert!(!has_all(&json!({}), &labels) && has_all(&json!({"app": "web"}), &labels));
        let both = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["d", "e"]}]});
        assert_eq!(text(&both), "a=b,c in (d,e)");
    }
}
