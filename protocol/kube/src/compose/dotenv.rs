//! `.env` and `env_file`: names and values, one a line, with quotes as shells and Compose have them.

use super::interpolate::{self, Variables};

/// Reads such a file. `known` are the variables that values may refer to, besides those above them in the file. A line
/// with a name alone takes what `known` has, if anything.
///
/// # Errors
/// The line that is none, by its number.
pub(super) fn parse(text: &str, known: &Variables) -> Result<Vec<(String, String)>, String> {
    let mut variables = known.clone();
    let mut out: Vec<(String, String)> = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let wrong = |problem: &str| format!("line {}: {problem}", index + 1);
        let line = line.trim_start();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, rest) = match line.find(['=', ':']) {
            Some(at) => (line[..at].trim_end(), Some(&line[at + 1..])),
            None => (line.trim_end(), None),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(wrong("must be NAME=VALUE"));
        }
        let value = match rest {
            None => match variables.get(name) {
                Some(value) => value.clone(),
                None => continue,
            },
            Some(rest) => {
                let rest = rest.trim_start();
                match rest.chars().next() {
                    Some(quote @ ('"' | '\'')) => {
                        // A quoted value may go over several lines.
                        let mut body = rest[1..].to_owned();
                        let end = loop {
                            match closing(&body, quote) {
                                Some(end) => break end,
                                None => {
                                    let (_, more) = lines.next().ok_or_else(|| wrong("a quote is not closed"))?;
                                    body.push('\n');
                                    body.push_str(more);
                                }
                            }
                        };
                        let tail = body[end + 1..].trim_start();
                        if !tail.is_empty() && !tail.starts_with('#') {
                            return Err(wrong("something stands behind the closing quote"));
                        }
                        quoted(&body[..end], quote, &variables).map_err(|problem| wrong(&problem))?
                    }
                    _ => {
                        let end = rest.find(" #").unwrap_or(rest.len());
                        let plain = if rest.starts_with('#') { "" } else { rest[..end].trim_end() };
                        interpolate::text(plain, &variables).map_err(|problem| wrong(&problem))?
                    }
                }
            }
        };
        variables.insert(name.to_owned(), value.clone());
        out.retain(|(other, _)| other != name);
        out.push((name.to_owned(), value));
    }
    Ok(out)
}

/// Where the quote closes.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '\\' if quote == '"' && !escaped => {
                escaped = true;
                continue;
            }
            c if c == quote && !escaped => return Some(at),
            _ => {}
        }
        escaped = false;
    }
    None
}

fn quoted(text: &str, quote: char, variables: &Variables) -> Result<String, String> {
    if quote == '\'' {
        return Ok(text.to_owned());
    }
    let (mut out, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            // Stays a dollar sign when variables are replaced.
            Some('$') => out.push_str("$$"),
            Some(c @ ('"' | '\\')) => out.push(c),
            Some(c) => out.extend(['\\', c]),
            None => out.push('\\'),
        }
    }
    interpolate::text(&out, variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_compose_reads_them() {
        let known = Variables::from([("HOME".to_owned(), "/root".to_owned())]);
        let text = "# comment\n\nA=1\nexport B = two words # not this\nC=\"a\\nb $A\" # c\nD='$A'\nE=\nHOME\nGONE\n\
            F=${A}x#y\nG=\"first\nsecond\"\nA=3\n";
        let parsed = parse(text, &known).unwrap();
        let value = |name: &str| parsed.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        assert_eq!(value("A"), Some("3"), "the last one wins");
        assert_eq!(value("B"), Some("two words"));
        assert_eq!(value("C"), Some("a\nb 1"));
        assert_eq!(value("D"), Some("$A"));
        assert_eq!(value("E"), Some(""));
        assert_eq!(value("HOME"), Some("/root"));
        assert_eq!(value("GONE"), None);
        assert_eq!(value("F"), Some("1x#y"));
        assert_eq!(value("G"), Some("first\nsecond"));
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, line) in
            [("A=1\n=2\n", "line 2"), ("two words=1", "line 1"), ("A='x", "line 1"), ("A='x' y", "line 1")]
        {
            let error = parse(text, &Variables::new()).unwrap_err();
            assert!(error.contains(line), "{text}: {error}");
        }
    }
}
