//! Lengths of time as people write them: `90s`, `15m`, `24h`, `7d`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// The longest: a century.
const LONGEST: u64 = 36_525 * 86_400;

/// Reads a whole number and `s`, `m`, `h` or `d`.
pub fn read(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let count = &text[..text.len() - unit.len_utf8()];
    let digits = count.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = count.parse().ok().filter(|_| digits)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let period = count.checked_mul(seconds).filter(|period| *period <= LONGEST)?;
    Some(Duration::from_secs(period))
}

/// Writes it in the largest unit that it is whole in.
pub fn write(period: Duration) -> String {
    let seconds = period.as_secs();
    match seconds {
        _ if seconds.is_multiple_of(86_400) => format!("{}d", seconds / 86_400),
        _ if seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        _ if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

/// For `#[serde(with)]`.
pub fn serialize<S: Serializer>(period: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&write(*period))
}

/// For `#[serde(with)]`; none is no time.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    read(&text)
        .filter(|period| !period.is_zero())
        .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no time; write it like `90s`, `24h` or `7d`")))
}
