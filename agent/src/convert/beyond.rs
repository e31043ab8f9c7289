//! What a manifest can say and this device does not do yet: refused by name, never passed over. A line goes when what it
//! says is built.

use skeg_protocol::{Container, Pod};

use super::ConvertError;

/// Refuses a container that asks for more than this device does.
pub(super) fn check(pod: &Pod, container: &Container) -> Result<(), ConvertError> {
    let asked = [(container.tty, "tty"), (pod.share_processes, "spec.shareProcessNamespace")];
    match asked.iter().find(|(asked, _)| *asked) {
        Some((_, field)) => Err(ConvertError::new(*field, "is not possible on this device yet")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let (pod, container) = (Pod::default(), Container::default());
        check(&pod, &container).unwrap();
        let refused = |pod: &Pod, container: &Container| check(pod, container).unwrap_err().to_string();
        let shared = Pod { share_processes: true, ..Pod::default() };
        assert_eq!(refused(&shared, &container), "spec.shareProcessNamespace: is not possible on this device yet");
        assert!(refused(&pod, &Container { tty: true, ..Container::default() }).starts_with("tty: "));
    }
}
