//! Durations as people write them: `90s`, `15m`, `1h30m`, `7d`.

use std::time::Duration;

/// Reads a duration: numbers each with a unit, of `ms`, `s`, `m`, `h` and `d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write it like 90s, 15m, 1h30m or 7d");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut millis = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = rest.split_at(digits);
        let letters = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, behind) = unit.split_at(letters);
        let unit = match unit.trim() {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        millis = number.checked_mul(unit).and_then(|more| millis.checked_add(more)).ok_or_else(wrong)?;
        rest = behind;
    }
    Ok(Duration::from_millis(millis))
}

/// Writes a duration so that [`duration`] reads it, to the millisecond.
pub fn duration_text(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if millis >= size {
            text.push_str(&format!("{}{unit}", millis / size));
            millis %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h30m", 5400), ("7d", 604_800), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("1s500ms"), Ok(Duration::from_millis(1500)));
        for wrong in ["", "5", "m", "5x", "-5m", "1.5h", "5m5", "99999999999999999999d", "9999999999999999d"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        for millis in [0, 1, 1500, 5_400_000, 90_061_001] {
            let duration = Duration::from_millis(millis);
            assert_eq!(super::duration(&duration_text(duration)), Ok(duration));
        }
    }
}
