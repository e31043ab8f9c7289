//! Kubernetes quantities (`64Mi`, `500m`, `0.5`, `1e3`) as whole numbers of a smallest unit.

/// Parses a quantity and gives it in thousandths, rounded up as Kubernetes does; `None` where it is none, is
/// negative or is too large.
pub fn millis(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || whole.len() + fraction.len() > 18 || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    // The value is digits × numerator / denominator, in thousandths.
    let (numerator, mut denominator): (u128, u128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        _ => match suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()? {
            power @ 0..=18 => (1_000 * 10u128.pow(power.unsigned_abs()), 1),
            power @ -18..=-1 => (1_000, 10u128.pow(power.unsigned_abs())),
            _ => return None,
        },
    };
    denominator *= 10u128.pow(fraction.len() as u32);
    Some(digits.checked_mul(numerator)?.div_ceil(denominator))
}

/// Parses a quantity and gives it in whole units, rounded up.
pub fn units(text: &str) -> Option<u64> {
    millis(text)?.div_ceil(1000).try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_forms_are_read() {
        assert_eq!(units("64Mi"), Some(64 << 20));
        assert_eq!(units("1G"), Some(1_000_000_000));
        assert_eq!(units("134217728"), Some(134_217_728));
        assert_eq!(units("1e3"), Some(1000));
        assert_eq!(units("1.5Gi"), Some(3 << 29));
        assert_eq!(millis("500m"), Some(500));
        assert_eq!(millis("0.5"), Some(500));
        assert_eq!(millis("2"), Some(2000));
        assert_eq!(millis("1n"), Some(1));
    }

    #[test]
    fn others_are_not() {
        for text in ["", "Mi", "-1", "1.2.3", "64mib", "1e99", "1 Mi", "99999999999999999999"] {
            assert_eq!(millis(text), None, "{text}");
        }
    }
}
