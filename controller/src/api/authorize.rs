//! What somebody may do: role-based access control as Kubernetes defines it (rbac.authorization.k8s.io/v1).

use serde_json::{Value, json};

use super::ApiError;
use super::kinds;
use super::users::User;
use crate::app::App;
use crate::store::{Key, Store, StoreError};

/// What somebody wants to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Deed {
    pub(super) verb: String,
    pub(super) group: String,
    /// Plural of the kind, with `/part` where there is one.
    pub(super) resource: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// A path that is no object's; then the other fields but the verb are empty.
    pub(super) path: String,
}

fn list(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

impl Deed {
    /// Whether a rule allows it.
    fn is_allowed_by(&self, rule: &Value) -> bool {
        let has = |field: &str, wanted: &str| list(&rule[field]).any(|word| word == "*" || word == wanted);
        if !has("verbs", &self.verb) {
            return false;
        }
        if !self.path.is_empty() {
            return list(&rule["nonResourceURLs"]).any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => self.path.starts_with(prefix),
                None => self.path == pattern,
            });
        }
        let part = self.resource.split_once('/').map(|(_, part)| format!("*/{part}"));
        let named =
            list(&rule["resourceNames"]).next().is_none() || list(&rule["resourceNames"]).any(|name| name == self.name);
        let resource = has("resources", &self.resource)
            || part.is_some_and(|part| list(&rule["resources"]).any(|word| word == part));
        has("apiGroups", &self.group) && resource && named
    }

    /// Why it is refused, in Kubernetes' words.
    pub(super) fn refusal(&self, user: &User) -> ApiError {
        if !self.path.is_empty() {
            let message = format!("forbidden: User \"{}\" cannot {} path \"{}\"", user.name, self.verb, self.path);
            return ApiError::denied("", "", message);
        }
        let name = if self.name.is_empty() { String::new() } else { format!(" \"{}\"", self.name) };
        let plural = self.resource.split('/').next().unwrap_or_default();
        let full = if self.group.is_empty() { plural.to_owned() } else { format!("{plural}.{}", self.group) };
        let place = match self.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace \"{namespace}\""),
        };
        let message = format!(
            "{full}{name} is forbidden: User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
            user.name, self.verb, self.resource, self.group
        );
        let kind = kinds::at(&self.group, "v1", plural).map_or(plural, |kind| kind.kind);
        ApiError::denied(kind, &self.name, message)
    }
}

/// Whether a binding is for this user.
fn binds(binding: &Value, user: &User) -> bool {
    binding["subjects"].as_array().into_iter().flatten().any(|subject| {
        let name = subject["name"].as_str().unwrap_or_default();
        match subject["kind"].as_str() {
            Some("User") => name == user.name,
            Some("Group") => user.groups.iter().any(|group| group == name),
            Some("ServiceAccount") => {
                let namespace = subject["namespace"].as_str().or(binding["metadata"]["namespace"].as_str());
                user.name == format!("system:serviceaccount:{}:{name}", namespace.unwrap_or_default())
            }
            _ => false,
        }
    })
}

/// The rules of the role that a binding names.
fn rules_of(app: &App, binding: &Value) -> Result<Vec<Value>, StoreError> {
    let name = binding["roleRef"]["name"].as_str().unwrap_or_default();
    let key = match binding["roleRef"]["kind"].as_str() {
        Some("Role") => Key::new("Role", binding["metadata"]["namespace"].as_str().unwrap_or_default(), name),
        _ => Key::new("ClusterRole", "", name),
    };
    let role = app.store.get(&key)?.unwrap_or_default();
    Ok(role["rules"].as_array().cloned().unwrap_or_default())
}

/// What everybody may who is known: find out what there is and what they may.
fn for_everybody() -> [Value; 2] {
    [
        json!({"verbs": ["get"], "nonResourceURLs": [
            "/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/version", "/healthz", "/livez", "/readyz",
        ]}),
        json!({
            "verbs": ["create"], "apiGroups": ["authorization.k8s.io", "authentication.k8s.io"],
            "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"],
        }),
    ]
}

/// All rules that a user has, in a namespace and in the whole cluster.
pub(super) fn rules(app: &App, user: &User, namespace: &str) -> Result<Vec<Value>, StoreError> {
    if user.groups.iter().any(|group| group == "system:masters") {
        let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
        return Ok(vec![all, json!({"verbs": ["*"], "nonResourceURLs": ["*"]})]);
    }
    let mut rules = for_everybody().to_vec();
    let mut bindings = app.store.list("ClusterRoleBinding", None)?.items;
    if !namespace.is_empty() {
        bindings.extend(app.store.list("RoleBinding", Some(namespace))?.items);
    }
    for binding in bindings.iter().filter(|binding| binds(binding, user)) {
        rules.extend(rules_of(app, binding)?);
    }
    Ok(rules)
}

/// Whether a user may do something.
pub(super) fn allows(app: &App, user: &User, deed: &Deed) -> Result<bool, StoreError> {
    Ok(rules(app, user, &deed.namespace)?.iter().any(|rule| deed.is_allowed_by(rule)))
}

/// Refuses what a user may not do.
pub(super) fn check(app: &App, user: &User, deed: &Deed) -> Result<(), ApiError> {
    if allows(app, user, deed)? { Ok(()) } else { Err(deed.refusal(user)) }
}

/// Refuses to let somebody give away more than they have: what a role or binding grants must be theirs, unless they
/// may `escalate` roles or `bind` this one.
pub(super) fn check_grant(app: &App, user: &User, kind: &str, object: &Value) -> Result<(), ApiError> {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let (granted, deed) = match kind {
        "Role" | "ClusterRole" => {
            let rules = object["rules"].as_array().cloned().unwrap_or_default();
            (rules, ("escalate", if kind == "Role" { "roles" } else { "clusterroles" }, name))
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            let role = object["roleRef"]["name"].as_str().unwrap_or_default();
            let plural = if object["roleRef"]["kind"] == "Role" { "roles" } else { "clusterroles" };
            (rules_of(app, object)?, ("bind", plural, role))
        }
        _ => return Ok(()),
    };
    let own = rules(app, user, namespace)?;
    let special = Deed {
        verb: deed.0.to_owned(),
        group: "rbac.authorization.k8s.io".to_owned(),
        resource: deed.1.to_owned(),
        namespace: namespace.to_owned(),
        name: deed.2.to_owned(),
        path: String::new(),
    };
    if own.iter().any(|rule| special.is_allowed_by(rule)) {
        return Ok(());
    }
    let beyond: Vec<String> = granted.iter().filter(|rule| !covers(&own, rule)).map(Value::to_string).collect();
    if beyond.is_empty() {
        return Ok(());
    }
    let why = format!(
        "user \"{}\" (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        user.groups,
        beyond.join("\n")
    );
    Err(ApiError::forbidden(kind, name, &why))
}

/// Whether somebody's own rules allow all that a rule would.
fn covers(own: &[Value], rule: &Value) -> bool {
    let words = |field: &str| list(&rule[field]).map(str::to_owned).collect::<Vec<_>>();
    let paths = words("nonResourceURLs").into_iter().map(|path| Deed { path, ..Deed::default() });
    let mut deeds: Vec<Deed> = paths.collect();
    let names = if words("resourceNames").is_empty() { vec![String::new()] } else { words("resourceNames") };
    for group in words("apiGroups") {
        for resource in words("resources") {
            for name in &names {
                let (group, resource, name) = (group.clone(), resource.clone(), name.clone());
                deeds.push(Deed { group, resource, name, ..Deed::default() });
            }
        }
    }
    words("verbs").iter().all(|verb| {
        deeds.iter().all(|deed| {
            let deed = Deed { verb: verb.clone(), ..deed.clone() };
            own.iter().any(|rule| deed.is_allowed_by(rule))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deed(verb: &str, group: &str, resource: &str, name: &str) -> Deed {
        let text = str::to_owned;
        Deed { verb: text(verb), group: text(group), resource: text(resource), name: text(name), ..Deed::default() }
    }

    #[test]
    fn rules_allow_what_they_say() {
        let rule = json!({
            "verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods", "pods/log", "*/scale"],
            "resourceNames": [],
        });
        for (verb, group, resource) in [
            ("get", "", "pods"),
            ("list", "apps", "pods"),
            ("get", "", "pods/log"),
            ("get", "apps", "deployments/scale"),
        ] {
            assert!(deed(verb, group, resource, "x").is_allowed_by(&rule), "{verb} {resource}");
        }
        for (verb, group, resource) in
            [("delete", "", "pods"), ("get", "batch", "pods"), ("get", "", "pods/exec"), ("get", "", "secrets")]
        {
            assert!(!deed(verb, group, resource, "x").is_allowed_by(&rule), "{verb} {resource}");
        }
        let one = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["mine"]});
        assert!(
            deed("get", "", "pods", "mine").is_allowed_by(&one) && !deed("get", "", "pods", "").is_allowed_by(&one)
        );
        let path = |path: &str| Deed { verb: "get".to_owned(), path: path.to_owned(), ..Deed::default() };
        assert!(
            path("/apis/apps/v1").is_allowed_by(&for_everybody()[0])
                && !path("/metrics").is_allowed_by(&for_everybody()[0])
        );
    }

    #[test]
    fn nobody_can_give_away_more_than_they_have() {
        let own = [json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["*"]})];
        assert!(covers(&own, &json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "secrets"]})));
        for beyond in [
            json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}),
            json!({"verbs": ["get"], "apiGroups": ["*"], "resources": ["pods"]}),
            json!({"verbs": ["get"], "nonResourceURLs": ["/metrics"]}),
        ] {
            assert!(!covers(&own, &beyond), "{beyond}");
        }
    }
}
