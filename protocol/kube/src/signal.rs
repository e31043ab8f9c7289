//! Signals by name.

/// Names of the signals 1 to 31 as signal(7) has them for x86 and Arm, without `SIG`.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The number of a signal from its name with or without `SIG`, `RTMIN+n`, `RTMAX-n`, or its number.
pub(crate) fn number(text: &str) -> Option<u8> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let offset = |prefix: &str| name.strip_prefix(prefix).map(|rest| rest.trim_start_matches(['+', '-']));
    let count = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<u8>().ok() };
    let number = if let Some(index) = NAMES.iter().position(|known| *known == name) {
        index as u8 + 1
    } else if let Some(rest) = offset("RTMIN") {
        count(rest)?.checked_add(34)?
    } else if let Some(rest) = offset("RTMAX") {
        64u8.checked_sub(count(rest)?)?
    } else {
        text.parse().ok()?
    };
    (1..=64).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, value) in [("SIGTERM", 15), ("INT", 2), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX", 64), ("SIGSYS", 31)]
        {
            assert_eq!(number(text), Some(value), "{text}");
        }
        for text in ["", "SIG", "0", "65", "SIGFLY", "RTMIN+40", "RTMAX-99"] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
