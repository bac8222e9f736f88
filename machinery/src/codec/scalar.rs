//! Scalar text forms: checked and made canonical on the way in, turned into numbers for the wire.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::value::Value;
use crate::{quantity, time};

/// The canonical form of a quantity.
pub(super) fn quantity(text: &str) -> Result<String, String> {
    if plainly_canonical(text) {
        return Ok(text.to_string());
    }
    quantity::wire_form(text).map_err(|e| e.to_string())
}

/// Whether a quantity is one of the common forms that are canonical without doubt: a few digits that neither begin
/// with a zero nor end in three, and a usual suffix. `false` says nothing.
fn plainly_canonical(text: &str) -> bool {
    let end = text
        .bytes()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    let most = match suffix {
        "" | "m" | "k" | "M" | "G" => 9,
        // Below 1024 no larger binary suffix fits.
        "Ki" | "Mi" | "Gi" => 3,
        _ => return false,
    };
    (1..=most).contains(&digits.len()) && !digits.starts_with('0') && !digits.ends_with("000")
}

/// Go's zero time, which is null in JSON and an empty message on the wire.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";
/// Seconds from the epoch to Go's zero time.
const ZERO_SECONDS: i64 = -62_135_596_800;

/// Whether seconds since the epoch are Go's zero time.
pub(super) fn is_zero_time(seconds: i64) -> bool {
    seconds == ZERO_SECONDS
}

/// The canonical form of a `metav1.Time`; `None` for the zero time.
pub(super) fn time(text: &str) -> Result<Option<String>, String> {
    if canonical_seconds(text).is_some() {
        return Ok((text != ZERO_TIME).then(|| text.to_string()));
    }
    let parsed = time::parse(text).map_err(|e| e.to_string())?;
    Ok((parsed.as_second() != ZERO_SECONDS).then(|| time::format(parsed)))
}

/// The canonical form of a `metav1.MicroTime`; `None` for the zero time.
pub(super) fn micro_time(text: &str) -> Result<Option<String>, String> {
    let parsed = time::parse_micro(text).map_err(|e| e.to_string())?;
    let zero = parsed.as_second() == ZERO_SECONDS && parsed.subsec_nanosecond() == 0;
    Ok((!zero).then(|| time::format_micro(parsed)))
}

/// The canonical form of a `metav1.Duration`.
pub(super) fn duration(text: &str) -> Result<String, String> {
    time::parse_duration(text)
        .map(time::format_duration)
        .map_err(|e| e.to_string())
}

/// Whether base64 text is canonical: `None` when it is, else its canonical form. Go skips line breaks.
pub(super) fn canonical_base64(text: &str) -> Result<Option<String>, String> {
    if text.contains(['\n', '\r']) {
        let joined = text.replace(['\n', '\r'], "");
        let bytes = decode_base64(&joined)?;
        return Ok(Some(STANDARD.encode(bytes)));
    }
    decode_base64(text).map(|_| None)
}

/// The bytes of standard base64 with padding, with Go's error text.
pub(super) fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|e| {
        let at = match e {
            base64::DecodeError::InvalidByte(at, _)
            | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => {
                text.len()
            }
        };
        format!("illegal base64 data at input byte {at}")
    })
}

/// Base64 text of bytes.
pub(super) fn encode_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A float as a value; whole ones as integers, as Go prints them alike. `None` for what JSON cannot say.
pub(super) fn double(n: f64) -> Option<Value> {
    // Up to 2^53 every whole float is an exact integer.
    if n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_992.0 {
        return Some(Value::from(n as i64));
    }
    serde_json::Number::from_f64(n).map(Value::Number)
}

/// Seconds and nanoseconds since the epoch of a `metav1.Time` or `MicroTime` text; `None` for the zero time.
pub(super) fn time_parts(text: &str) -> Result<Option<(i64, i32)>, String> {
    let (seconds, nanos) = match canonical_seconds(text) {
        Some(seconds) => (seconds, 0),
        None => {
            let parsed = time::parse(text).map_err(|e| e.to_string())?;
            let (mut seconds, mut nanos) = (parsed.as_second(), parsed.subsec_nanosecond());
            if nanos < 0 {
                seconds -= 1;
                nanos += 1_000_000_000;
            }
            (seconds, nanos)
        }
    };
    Ok((seconds != ZERO_SECONDS || nanos != 0).then_some((seconds, nanos)))
}

/// The `metav1.Time` text of seconds since the epoch.
pub(super) fn time_text(seconds: i64) -> Option<String> {
    // Years 0001 to 9999: what RFC 3339 can say.
    if !(ZERO_SECONDS..=253_402_300_799).contains(&seconds) {
        return None;
    }
    let mut out = vec![0u8; 20];
    write_time(&mut out, seconds);
    String::from_utf8(out).ok()
}

/// The `metav1.MicroTime` text of seconds and nanoseconds since the epoch.
pub(super) fn micro_time_text(seconds: i64, nanos: i32) -> Option<String> {
    let mut text = time_text(seconds)?;
    text.pop();
    let micros = u32::try_from(nanos).ok()? / 1000;
    text.push_str(&format!(".{micros:06}Z"));
    Some(text)
}

/// Days from the civil calendar's 1970-01-01 to a date, by the usual count of 400-year eras from 1 March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let of_era = y.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn write_time(out: &mut [u8], seconds: i64) {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // The inverse of days_from_civil.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    out.copy_from_slice(b"0000-00-00T00:00:00Z");
    for (at, number) in [
        (0, year / 100),
        (2, year % 100),
        (5, month),
        (8, day),
        (11, rest / 3600),
        (14, rest / 60 % 60),
        (17, rest % 60),
    ] {
        out[at] = b'0' + (number / 10) as u8;
        out[at + 1] = b'0' + (number % 10) as u8;
    }
}

/// Seconds since the epoch of a text that is exactly `YYYY-MM-DDThh:mm:ssZ`; `None` for any other text, even when it
/// is a time too.
fn canonical_seconds(text: &str) -> Option<i64> {
    let bytes: &[u8; 20] = text.as_bytes().try_into().ok()?;
    for (index, expected) in b"0000-00-00T00:00:00Z".iter().enumerate() {
        let found = bytes[index];
        let fits = match expected {
            b'0' => found.is_ascii_digit(),
            other => found == *other,
        };
        if !fits {
            return None;
        }
    }
    let two = |at: usize| i64::from(bytes[at] - b'0') * 10 + i64::from(bytes[at + 1] - b'0');
    let year = two(0) * 100 + two(2);
    let (month, day, hour, minute, second) = (two(5), two(8), two(11), two(14), two(17));
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1 || !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    Some(days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The short cut agrees with the long way wherever it is taken.
    #[test]
    fn common_quantities_are_canonical() {
        for suffix in ["", "m", "k", "M", "G", "Ki", "Mi", "Gi"] {
            for digits in [
                "1",
                "5",
                "10",
                "64",
                "128",
                "100",
                "500",
                "512",
                "999",
                "1024",
                "1500",
                "250000001",
                "8",
            ] {
                let text = format!("{digits}{suffix}");
                if plainly_canonical(&text) {
                    assert_eq!(quantity::wire_form(&text).as_ref(), Ok(&text));
                }
            }
        }
        assert!(
            plainly_canonical("128Mi") && plainly_canonical("100m") && !plainly_canonical("1000m")
        );
        assert_eq!(super::quantity("1000m"), Ok("1".into()));
    }

    #[test]
    fn times_go_to_numbers_and_back() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2008-01-01T01:01:01Z", 1_199_149_261),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("1969-12-31T23:59:59Z", -1),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(time_parts(text), Ok(Some((seconds, 0))), "{text}");
            assert_eq!(time_text(seconds).as_deref(), Some(text));
        }
        assert_eq!(time_parts(ZERO_TIME), Ok(None));
        assert_eq!(
            time("2008-01-01T03:01:01+02:00"),
            Ok(Some("2008-01-01T01:01:01Z".into()))
        );
        assert_eq!(
            time_parts("2008-01-01T01:01:01.5Z"),
            Ok(Some((1_199_149_261, 500_000_000)))
        );
        assert_eq!(
            micro_time_text(0, 1_000).as_deref(),
            Some("1970-01-01T00:00:00.000001Z")
        );
        for bad in [
            "2023-02-29T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "yesterday",
            "",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
