//! Compose's small languages: words of a shell, durations, sizes, and names that DNS takes.

/// Splits a text into words as a POSIX shell does, without expanding anything; `None` where a quote is not closed.
pub(super) fn split(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut chars) = (Vec::new(), None::<String>, text.chars());
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            '\n' => {}
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => match chars.next()? {
                '\n' => {}
                c => word.get_or_insert_default().push(c),
            },
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// Milliseconds of a duration such as `1m30s`, `500ms` or `2h`, rounded up.
pub(super) fn millis(text: &str) -> Option<u32> {
    let (mut rest, mut nanos) = (text, 0u128);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        nanos = nanos.checked_add(decimal(number, unit)?)?;
        rest = after;
    }
    u32::try_from(nanos.div_ceil(1_000_000)).ok()
}

/// Bytes of a size such as `64m`, `1gb` or `512`; units are powers of 1024.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    u64::try_from(decimal(number, 1 << shift)?).ok()
}

/// Thousandths of a number such as `0.5`, rounded up.
pub(super) fn thousandths(text: &str) -> Option<u32> {
    u32::try_from(decimal(text, 1000)?).ok()
}

/// A decimal number times a unit, rounded up.
fn decimal(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || whole.len() + fraction.len() > 18 || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    Some(digits.checked_mul(unit)?.div_ceil(10u128.pow(fraction.len() as u32)))
}

/// A name of Compose's as a DNS label: small letters, and `-` for `_` and `.`.
pub(super) fn label(text: &str) -> String {
    text.to_ascii_lowercase().replace(['_', '.'], "-")
}

/// A text that stays as it is when the manifest's `$(NAME)` is replaced.
pub(super) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        for (text, words) in [
            ("echo hello  world", vec!["echo", "hello", "world"]),
            (r#"sh -c 'a "b" $c' "d\"e" f\ g"#, vec!["sh", "-c", "a \"b\" $c", "d\"e", "f g"]),
            (r#"a '' "" x"y"z"#, vec!["a", "", "", "xyz"]),
            ("", vec![]),
        ] {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
        assert_eq!(split("a 'b"), None);
        assert_eq!(split("a \\"), None);
    }

    #[test]
    fn durations_and_sizes_have_their_units() {
        for (text, value) in [("10s", 10_000), ("1m30s", 90_000), ("2h", 7_200_000), ("1.5s", 1500), ("1us", 1)] {
            assert_eq!(millis(text), Some(value), "{text}");
        }
        for text in ["", "5", "s", "1d", "-1s", "99999h", "1s2"] {
            assert_eq!(millis(text), None, "{text}");
        }
        for (text, value) in [("128M", 128 << 20), ("1gb", 1 << 30), ("512", 512), ("0.5k", 512), ("64 mib", 64 << 20)]
        {
            assert_eq!(bytes(text), Some(value), "{text}");
        }
        for text in ["", "m", "1x", "-1", "1.2.3", "99999999t9"] {
            assert_eq!(bytes(text), None, "{text}");
        }
        assert_eq!(thousandths("0.50"), Some(500));
    }
}
