//! The query parameters and selectors of list, watch, delete and log requests.

use serde::Deserialize;
use serde_json::Value;

use super::ApiError;

/// Query parameters that any request to an object may carry; the others that Kubernetes knows have no effect.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Query {
    pub(super) watch: Option<String>,
    pub(super) resource_version: Option<String>,
    pub(super) label_selector: Option<String>,
    pub(super) field_selector: Option<String>,
    pub(super) grace_period_seconds: Option<i64>,
    pub(super) dry_run: Option<String>,
    pub(super) timeout_seconds: Option<u64>,
    pub(super) allow_watch_bookmarks: Option<String>,
    pub(super) container: Option<String>,
    pub(super) follow: Option<String>,
    pub(super) previous: Option<String>,
    pub(super) timestamps: Option<String>,
    pub(super) tail_lines: Option<u32>,
    pub(super) since_seconds: Option<u64>,
    pub(super) since_time: Option<String>,
    pub(super) limit: Option<usize>,
    #[serde(rename = "continue")]
    pub(super) resume: Option<String>,
    pub(super) field_manager: Option<String>,
    pub(super) field_validation: Option<String>,
    pub(super) force: Option<String>,
    pub(super) propagation_policy: Option<String>,
    pub(super) orphan_dependents: Option<String>,
    pub(super) send_initial_events: Option<String>,
}

/// Reads a boolean as Go's strconv.ParseBool does for query parameters.
pub(super) fn flag(value: Option<&String>) -> bool {
    value.is_some_and(|value| matches!(value.as_str(), "" | "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

#[derive(Debug)]
enum Rule {
    Equal(String, String),
    NotEqual(String, String),
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

/// What a list or watch is to contain.
#[derive(Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Rule>,
    fields: Vec<Rule>,
}

/// Fields that may be selected by, and the kinds that have them; no kind: every kind.
const FIELDS: [(&str, &[&str]); 18] = [
    ("metadata.name", &[]),
    ("metadata.namespace", &[]),
    ("spec.nodeName", &["Pod"]),
    ("spec.restartPolicy", &["Pod"]),
    ("spec.schedulerName", &["Pod"]),
    ("spec.serviceAccountName", &["Pod"]),
    ("spec.unschedulable", &["Node"]),
    ("status.phase", &["Pod", "Namespace", "PersistentVolume", "PersistentVolumeClaim"]),
    ("status.podIP", &["Pod"]),
    ("status.successful", &["Job"]),
    ("type", &["Secret", "Event"]),
    ("reason", &["Event"]),
    ("reportingComponent", &["Event"]),
    ("source", &["Event"]),
    ("involvedObject.kind", &["Event"]),
    ("involvedObject.name", &["Event"]),
    ("involvedObject.namespace", &["Event"]),
    ("involvedObject.uid", &["Event"]),
];

fn can_select(kind: &str, field: &str) -> bool {
    // describe asks events for these too; they are kept empty or alike.
    let of_event = kind == "Event" && field.starts_with("involvedObject.");
    of_event || FIELDS.iter().any(|(name, kinds)| *name == field && (kinds.is_empty() || kinds.contains(&kind)))
}

impl Selector {
    /// Reads both selectors for objects of a kind.
    pub(super) fn parse(kind: &str, query: &Query) -> Result<Self, ApiError> {
        let labels = rules(query.label_selector.as_deref().unwrap_or_default())?;
        let fields = rules(query.field_selector.as_deref().unwrap_or_default())?;
        for rule in &fields {
            match rule {
                Rule::Equal(field, _) | Rule::NotEqual(field, _) if can_select(kind, field) => {}
                Rule::Equal(field, _) | Rule::NotEqual(field, _) => {
                    return Err(ApiError::bad_request(format!(
                        "\"{field}\" is not a known field selector: field label not supported: {field}"
                    )));
                }
                _ => return Err(ApiError::bad_request("a field selector must be of the form field=value")),
            }
        }
        Ok(Selector { labels, fields })
    }

    /// Whether it selects everything.
    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object is selected.
    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |name: &str| object["metadata"]["labels"][name].as_str().map(str::to_owned);
        let field = |path: &str| {
            let value = path.split('.').fold(object, |value, name| &value[name]);
            Some(match value {
                Value::Bool(_) | Value::Number(_) => value.to_string(),
                value => value.as_str().unwrap_or(if path == "spec.unschedulable" { "false" } else { "" }).to_owned(),
            })
        };
        self.labels.iter().all(|rule| rule.holds(label)) && self.fields.iter().all(|rule| rule.holds(field))
    }
}

impl Rule {
    fn holds(&self, value: impl Fn(&str) -> Option<String>) -> bool {
        match self {
            Rule::Equal(name, wanted) => value(name).as_ref() == Some(wanted),
            Rule::NotEqual(name, wanted) => value(name).as_ref() != Some(wanted),
            Rule::Exists(name) => value(name).is_some(),
            Rule::Absent(name) => value(name).is_none(),
            Rule::In(name, list) => value(name).is_some_and(|value| list.contains(&value)),
            Rule::NotIn(name, list) => value(name).is_none_or(|value| !list.contains(&value)),
        }
    }
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn rules(text: &str) -> Result<Vec<Rule>, ApiError> {
    split(text).into_iter().map(rule).collect()
}

fn rule(text: &str) -> Result<Rule, ApiError> {
    let pair = |operator: &str| text.split_once(operator).map(|(a, b)| (a.trim().to_owned(), b.trim().to_owned()));
    if let Some(head) = text.strip_suffix(')') {
        let (head, list) =
            head.split_once('(').ok_or_else(|| ApiError::bad_request(format!("unable to parse selector: {text:?}")))?;
        let list = list.split(',').map(|item| item.trim().to_owned()).collect();
        let words: Vec<&str> = head.split_whitespace().collect();
        return match words.as_slice() {
            [name, "in"] => Ok(Rule::In((*name).to_owned(), list)),
            [name, "notin"] => Ok(Rule::NotIn((*name).to_owned(), list)),
            _ => Err(ApiError::bad_request(format!("unable to parse selector: {text:?}"))),
        };
    }
    if let Some((name, value)) = pair("!=") {
        return Ok(Rule::NotEqual(name, value));
    }
    if let Some((name, value)) = pair("==").or_else(|| pair("=")) {
        return Ok(Rule::Equal(name, value));
    }
    Ok(match text.strip_prefix('!') {
        Some(name) => Rule::Absent(name.trim().to_owned()),
        None => Rule::Exists(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_select() {
        let pod =
            json!({"metadata": {"name": "a", "labels": {"app": "web", "tier": "front"}}, "spec": {"nodeName": "n"}});
        let select = |labels: &str, fields: &str| {
            let query = Query {
                label_selector: Some(labels.to_owned()),
                field_selector: Some(fields.to_owned()),
                ..Query::default()
            };
            Selector::parse("Pod", &query)
                .map(|selector| selector.matches(&pod))
                .unwrap_or_else(|_| panic!("{labels} {fields}"))
        };
        for labels in ["", "app=web", "app==web,tier!=back", "tier", "!x", "app in (db, web)", "app notin (db)"] {
            assert!(select(labels, ""), "{labels}");
        }
        for labels in ["app=db", "app!=web", "!app", "x", "app in (db)", "app notin (web)"] {
            assert!(!select(labels, ""), "{labels}");
        }
        assert!(select("", "metadata.name=a,spec.nodeName=n"));
        assert!(!select("", "metadata.name!=a"));
        let odd = Query { field_selector: Some("spec.x=1".to_owned()), ..Query::default() };
        assert!(Selector::parse("Pod", &odd).is_err());
    }
}
