//! Lists of numbers as `0-3,7`, in which CPUs and memory nodes are named (cpuset(7), "List format").
//!
//! Owns their bounds. Must not know whether the machine has the numbers.

/// Reads a list of numbers below `end` into a bit mask, 64 numbers a word. `None` if it is no such list.
pub(crate) fn numbers(list: &str, end: usize) -> Option<Vec<u64>> {
    let mut mask = vec![0_u64; end.div_ceil(64)];
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse::<usize>().ok()).flatten()
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= end {
            return None;
        }
        for number in first..=last {
            mask[number / 64] |= 1 << (number % 64);
        }
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn lists_become_masks() {
        assert_eq!(numbers("0-3,7", 128), Some(vec![0x8f, 0]));
        assert_eq!(numbers("64,127", 128), Some(vec![0, 0x8000_0000_0000_0001]));
        for wrong in ["", ",", "1,", "-1", "1-", "3-1", "128", "0-99999999999999999999", "a", " 1", "+1"] {
            assert_eq!(numbers(wrong, 128), None, "{wrong:?}");
        }
    }
}
