//! A container's environment: what the image, the runtime and the pod say, the pod's word last, and Kubernetes'
//! `$(NAME)` in values and arguments.

use skeg_protocol::manifest::{EnvValue, EnvVar};

use super::ConvertError;

/// Where programs are looked for when nobody says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn set(variables: &mut Vec<(String, String)>, name: &str, value: String) {
    match variables.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => variables.push((name.to_owned(), value)),
    }
}

/// Merges; the order of first mention is kept.
///
/// # Errors
/// A value that is no text: nothing on a device resolves those yet.
pub(crate) fn merge(
    image: &[String],
    pod: &[EnvVar],
    hostname: &str,
    home: &str,
) -> Result<Vec<(String, String)>, ConvertError> {
    let mut variables = Vec::new();
    for (name, value) in [("PATH", PATH), ("HOSTNAME", hostname), ("HOME", home)] {
        set(&mut variables, name, value.to_owned());
    }
    for entry in image {
        if let Some((name, value)) = entry.split_once('=').filter(|(name, _)| !name.is_empty()) {
            set(&mut variables, name, value.replace('\0', ""));
        }
    }
    for variable in pod {
        let EnvValue::Text(text) = &variable.value else {
            return Err(ConvertError::new(format!("env[{}].valueFrom", variable.name), "is not possible yet"));
        };
        let value = expand(text, &variables);
        set(&mut variables, &variable.name, value);
    }
    Ok(variables)
}

/// Replaces `$(NAME)` by the variable's value; `$$` is a `$`; what names nothing stays as it is.
pub(crate) fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let named = rest.strip_prefix("$(").and_then(|inner| inner.split_once(')'));
        let known = named.and_then(|(name, after)| Some((variables.iter().find(|(known, _)| known == name)?, after)));
        match known {
            Some(((_, value), after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('$');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, value: &str) -> EnvVar {
        EnvVar { name: name.to_owned(), value: value.into() }
    }

    #[test]
    fn the_pods_word_comes_last_and_sees_what_is_before_it() {
        let image = ["PATH=/opt".to_owned(), "A=image".to_owned(), "broken".to_owned(), "=x".to_owned()];
        let pod = [variable("A", "pod"), variable("B", "$(A)-$(C)"), variable("C", "late")];
        let merged = merge(&image, &pod, "web-0", "/root").unwrap();
        let expected = [
            ("PATH", "/opt"),
            ("HOSTNAME", "web-0"),
            ("HOME", "/root"),
            ("A", "pod"),
            ("B", "pod-$(C)"),
            ("C", "late"),
        ];
        assert_eq!(merged, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn references_expand_as_in_kubernetes() {
        let variables = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        for (text, expected) in [
            ("", ""),
            ("$(A)", "1"),
            ("x$(A)y$(B)z", "x1y$(A)z"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(NOPE) $(A", "$(NOPE) $(A"),
            ("$A $", "$A $"),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }
}
