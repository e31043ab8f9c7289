//! The kinds that the API serves. Discovery, paths, checks and errors are derived from this table: a new kind is a line
//! here, its fields in `schema/types.txt`, and, if it acts, a controller.

/// A kind that the API serves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// `apps`; empty for the core group.
    pub(crate) group: &'static str,
    /// `v1`.
    pub(crate) version: &'static str,
    /// `Deployment`. No two kinds share it: it is also the kind of the store's keys.
    pub(crate) kind: &'static str,
    /// `deployments`.
    pub(crate) plural: &'static str,
    /// `deployment`.
    pub(crate) singular: &'static str,
    pub(crate) short: &'static [&'static str],
    /// Whether its objects live in namespaces.
    pub(crate) namespaced: bool,
    /// What stands behind an object's name in a path: `status`, `scale`, `log`.
    pub(crate) parts: &'static [&'static str],
    /// Its type in the schema.
    pub(crate) schema: &'static str,
    pub(crate) form: Form,
}

/// What the API does with a kind's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Keeps them.
    Kept,
    /// Keeps them and counts changes of what was asked for in `metadata.generation`.
    Counted,
    /// Answers the request and forgets it.
    Asked,
}

impl Form {
    /// Whether objects are kept in the store.
    pub(crate) fn is_kept(self) -> bool {
        self != Form::Asked
    }
}

const STATUS: &[&str] = &["status"];
const SCALED: &[&str] = &["status", "scale"];
const POD: &[&str] = &["status", "log", "exec", "attach", "portforward", "binding", "eviction"];

/// Kinds of one group: kind, plural, short names, whether namespaced, parts, form.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    bool,
    &'static [&'static str],
    Form,
    &'static str,
);

const fn kind(group: &'static str, row: Row) -> Kind {
    let (kind, plural, singular, short, namespaced, parts, form, schema) = row;
    Kind { group, version: "v1", kind, plural, singular, short, namespaced, parts, schema, form }
}

use Form::{Asked, Counted, Kept};

/// Every kind.
#[rustfmt::skip]
pub(crate) static KINDS: [Kind; 35] = [
    kind("", ("ConfigMap", "configmaps", "configmap", &["cm"], true, &[], Kept, "core.v1.ConfigMap")),
    kind("", ("Endpoints", "endpoints", "endpoints", &["ep"], true, &[], Kept, "core.v1.Endpoints")),
    kind("", ("Event", "events", "event", &["ev"], true, &[], Kept, "core.v1.Event")),
    kind("", ("LimitRange", "limitranges", "limitrange", &["limits"], true, &[], Kept, "core.v1.LimitRange")),
    kind("", ("Namespace", "namespaces", "namespace", &["ns"], false, &["status", "finalize"], Kept, "core.v1.Namespace")),
    kind("", ("Node", "nodes", "node", &["no"], false, STATUS, Kept, "core.v1.Node")),
    kind("", ("PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim", &["pvc"], true, STATUS, Kept, "core.v1.PersistentVolumeClaim")),
    kind("", ("PersistentVolume", "persistentvolumes", "persistentvolume", &["pv"], false, STATUS, Kept, "core.v1.PersistentVolume")),
    kind("", ("Pod", "pods", "pod", &["po"], true, POD, Counted, "core.v1.Pod")),
    kind("", ("ResourceQuota", "resourcequotas", "resourcequota", &["quota"], true, STATUS, Kept, "core.v1.ResourceQuota")),
    kind("", ("Secret", "secrets", "secret", &[], true, &[], Kept, "core.v1.Secret")),
    kind("", ("ServiceAccount", "serviceaccounts", "serviceaccount", &["sa"], true, &["token"], Kept, "core.v1.ServiceAccount")),
    kind("", ("Service", "services", "service", &["svc"], true, STATUS, Kept, "core.v1.Service")),
    kind("apps", ("ControllerRevision", "controllerrevisions", "controllerrevision", &[], true, &[], Kept, "apps.v1.ControllerRevision")),
    kind("apps", ("DaemonSet", "daemonsets", "daemonset", &["ds"], true, STATUS, Counted, "apps.v1.DaemonSet")),
    kind("apps", ("Deployment", "deployments", "deployment", &["deploy"], true, SCALED, Counted, "apps.v1.Deployment")),
    kind("apps", ("ReplicaSet", "replicasets", "replicaset", &["rs"], true, SCALED, Counted, "apps.v1.ReplicaSet")),
    kind("apps", ("StatefulSet", "statefulsets", "statefulset", &["sts"], true, SCALED, Counted, "apps.v1.StatefulSet")),
    kind("authentication.k8s.io", ("SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview", &[], false, &[], Asked, "authentication.v1.SelfSubjectReview")),
    kind("authentication.k8s.io", ("TokenReview", "tokenreviews", "tokenreview", &[], false, &[], Asked, "authentication.v1.TokenReview")),
    kind("authorization.k8s.io", ("LocalSubjectAccessReview", "localsubjectaccessreviews", "localsubjectaccessreview", &[], true, &[], Asked, "authorization.v1.LocalSubjectAccessReview")),
    kind("authorization.k8s.io", ("SelfSubjectAccessReview", "selfsubjectaccessreviews", "selfsubjectaccessreview", &[], false, &[], Asked, "authorization.v1.SelfSubjectAccessReview")),
    kind("authorization.k8s.io", ("SelfSubjectRulesReview", "selfsubjectrulesreviews", "selfsubjectrulesreview", &[], false, &[], Asked, "authorization.v1.SelfSubjectRulesReview")),
    kind("authorization.k8s.io", ("SubjectAccessReview", "subjectaccessreviews", "subjectaccessreview", &[], false, &[], Asked, "authorization.v1.SubjectAccessReview")),
    kind("batch", ("CronJob", "cronjobs", "cronjob", &["cj"], true, STATUS, Counted, "batch.v1.CronJob")),
    kind("batch", ("Job", "jobs", "job", &[], true, STATUS, Counted, "batch.v1.Job")),
    kind("coordination.k8s.io", ("Lease", "leases", "lease", &[], true, &[], Kept, "coordination.v1.Lease")),
    kind("discovery.k8s.io", ("EndpointSlice", "endpointslices", "endpointslice", &[], true, &[], Counted, "discovery.v1.EndpointSlice")),
    kind("policy", ("PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget", &["pdb"], true, STATUS, Counted, "policy.v1.PodDisruptionBudget")),
    kind("rbac.authorization.k8s.io", ("ClusterRoleBinding", "clusterrolebindings", "clusterrolebinding", &[], false, &[], Kept, "rbac.v1.ClusterRoleBinding")),
    kind("rbac.authorization.k8s.io", ("ClusterRole", "clusterroles", "clusterrole", &[], false, &[], Kept, "rbac.v1.ClusterRole")),
    kind("rbac.authorization.k8s.io", ("RoleBinding", "rolebindings", "rolebinding", &[], true, &[], Kept, "rbac.v1.RoleBinding")),
    kind("rbac.authorization.k8s.io", ("Role", "roles", "role", &[], true, &[], Kept, "rbac.v1.Role")),
    kind("scheduling.k8s.io", ("PriorityClass", "priorityclasses", "priorityclass", &["pc"], false, &[], Kept, "scheduling.v1.PriorityClass")),
    kind("storage.k8s.io", ("StorageClass", "storageclasses", "storageclass", &["sc"], false, &[], Kept, "storage.v1.StorageClass")),
];

/// The kind of this name.
pub(crate) fn of(kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|known| known.kind == kind)
}

/// The kind of a path.
pub(crate) fn at(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|known| known.plural == plural && known.group == group && known.version == version)
}

/// What a person calls a kind: kind, plural, singular, a short name, or plural.group.
pub(crate) fn called(word: &str) -> Option<&'static Kind> {
    let word = word.to_lowercase();
    let (word, group) = word.split_once('.').map_or((word.as_str(), None), |(word, group)| (word, Some(group)));
    KINDS.iter().filter(|known| known.form.is_kept()).find(|known| {
        let named = [known.plural, known.singular].contains(&word) || known.short.contains(&word);
        named && group.is_none_or(|group| known.group == group)
    })
}

impl Kind {
    /// `apps/v1`, or `v1` for the core group.
    pub(crate) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `deployments.apps`, or `pods` for the core group: what messages call it.
    pub(crate) fn resource(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// `deployment.apps`, or `pod`: how a line about one object calls it.
    pub(crate) fn resource_of_one(&self) -> String {
        match self.group {
            "" => self.singular.to_owned(),
            group => format!("{}.{group}", self.singular),
        }
    }

    /// `Deployment.apps`, or `Pod`.
    pub(crate) fn qualified(&self) -> String {
        match self.group {
            "" => self.kind.to_owned(),
            group => format!("{}.{group}", self.kind),
        }
    }

    /// Path of its group and version.
    pub(crate) fn root(&self) -> String {
        match self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        }
    }

    /// Path of its objects, in a namespace where it has one.
    pub(crate) fn path(&self, namespace: &str) -> String {
        match self.namespaced && !namespace.is_empty() {
            true => format!("{}/namespaces/{namespace}/{}", self.root(), self.plural),
            false => format!("{}/{}", self.root(), self.plural),
        }
    }

    /// Path of an object with its variable parts in braces, as OpenAPI writes it.
    pub(crate) fn template(&self) -> String {
        let namespace = if self.namespaced { "{namespace}" } else { "" };
        format!("{}/{{name}}", self.path(namespace))
    }

    /// Whether changes of `status` go through a path of its own.
    pub(crate) fn has_status(&self) -> bool {
        self.parts.contains(&"status")
    }

    /// What may be done with it.
    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        match (self.form, self.kind) {
            (Form::Asked, _) => &["create"],
            // A node is made when a device enrols.
            (_, "Node") => &["delete", "get", "list", "patch", "update", "watch"],
            _ => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_as_people_say_them() {
        for (word, kind) in
            [("po", "Pod"), ("Deployments", "Deployment"), ("deployments.apps", "Deployment"), ("svc", "Service")]
        {
            assert_eq!(called(word).map(|found| found.kind), Some(kind), "{word}");
        }
        assert!(called("deployments.batch").is_none() && called("things").is_none());
        let mut names: Vec<_> = KINDS.iter().map(|kind| kind.kind).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KINDS.len());
    }
}
