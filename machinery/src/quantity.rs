//! Resource quantities (upstream `k8s.io/apimachinery/pkg/api/resource`): decimal numbers with a suffix.
//!
//! A [`Quantity`] is exact up to 38 significant digits; upstream has no bound. A text with more digits than that
//! is refused, and a sum that would need more keeps the leading ones.

use std::cmp::Ordering;
use std::fmt;

/// How a quantity is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi` (12 * 2^20)
    BinarySi,
    /// `12M` (12 * 10^6)
    #[default]
    DecimalSi,
}

/// A text that is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text leaves the pattern (upstream `ErrFormatWrong`).
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// The number cannot be read (upstream `ErrNumeric`).
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is unknown (upstream `ErrSuffix`).
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An exact decimal number: `mantissa * 10^scale`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    mantissa: i128,
    scale: i32,
    /// How it is written.
    pub format: Format,
}

/// The finest unit that is kept: 10^-9.
const NANO: i32 = -9;
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

/// Splits as upstream's `parseQuantityString` does: leading zeros go, and a text may lack digits altogether.
fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let digits_end = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let negative = text.starts_with('-');
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let rest = rest.trim_start_matches('0');
    let (whole, rest) = rest.split_at(digits_end(rest));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits_end(rest)),
        None => ("", rest),
    };
    let letters = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let digits = letters.strip_prefix(['-', '+']).unwrap_or(letters);
    if digits_end(digits) != digits.len() {
        return Err(QuantityError::Format);
    }
    Ok(Parts {
        negative,
        whole,
        fraction,
        suffix,
    })
}

fn suffix_of(text: &str) -> Option<(Format, i32)> {
    if let Some((_, scale)) = DECIMAL.iter().find(|(suffix, _)| *suffix == text) {
        return Some((Format::DecimalSi, *scale));
    }
    if let Some(power) = BINARY.iter().position(|suffix| *suffix == text) {
        return Some((Format::BinarySi, power as i32 * 10));
    }
    let exponent = text.strip_prefix(['e', 'E'])?;
    // Beyond this no sum or product of quantities could be formed; upstream wraps around at 32 bits.
    let exponent: i32 = exponent.parse().ok()?;
    (-1_000_000..=1_000_000)
        .contains(&exponent)
        .then_some((Format::DecimalExponent, exponent))
}

impl Quantity {
    /// Zero, written as a decimal.
    pub const ZERO: Quantity = Quantity {
        mantissa: 0,
        scale: 0,
        format: Format::DecimalSi,
    };

    /// `value` written in `format` (upstream `NewQuantity`).
    pub fn new(value: i64, format: Format) -> Self {
        Self::scaled(i128::from(value), 0, format)
    }

    /// `value` thousandths (upstream `NewMilliQuantity`).
    pub fn from_milli(value: i64, format: Format) -> Self {
        Self::scaled(i128::from(value), -3, format)
    }

    fn scaled(mantissa: i128, scale: i32, format: Format) -> Self {
        let mut out = Quantity {
            mantissa,
            scale,
            format,
        };
        out.strip_zeros();
        out
    }

    /// Keeps the mantissa as small as it can be, so that later steps have room.
    fn strip_zeros(&mut self) {
        if self.mantissa == 0 {
            self.scale = 0;
        }
        while self.mantissa != 0 && self.mantissa % 10 == 0 {
            self.mantissa /= 10;
            self.scale += 1;
        }
    }

    /// Reads a quantity (upstream `ParseQuantity`): finer than 10^-9 is rounded away from zero, a binary number is
    /// capped at 2^63-1.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        let parts = split(text)?;
        let (mut format, exponent) = suffix_of(parts.suffix).ok_or(QuantityError::Suffix)?;
        let mut mantissa: i128 = 0;
        let mut scale: i32 = match format {
            Format::BinarySi => 0,
            Format::DecimalSi | Format::DecimalExponent => exponent,
        };
        let mut inexact = false;
        for (i, digit) in parts
            .whole
            .bytes()
            .chain(parts.fraction.bytes())
            .enumerate()
        {
            let in_fraction = i >= parts.whole.len();
            if in_fraction && (scale <= NANO && format != Format::BinarySi || scale <= -30) {
                // Below what is kept; only whether anything is there matters.
                inexact |= digit != b'0';
                continue;
            }
            mantissa = mantissa
                .checked_mul(10)
                .and_then(|m| m.checked_add(i128::from(digit - b'0')))
                .ok_or(QuantityError::Numeric)?;
            scale -= i32::from(in_fraction);
        }
        let mut out = Self::scaled(mantissa, scale, format);
        if format == Format::BinarySi {
            out = out.shifted_left(exponent as u32);
        }
        let exact = out.round_up_to(NANO);
        if exact && inexact {
            out.add_unit(NANO);
        }
        if format == Format::BinarySi {
            let max = Quantity::new(i64::MAX, format);
            if out > max {
                out = max;
            }
            if out.mantissa > 0 && out < Quantity::new(1, format) {
                format = Format::DecimalSi;
            }
        }
        if parts.negative {
            out.mantissa = -out.mantissa;
        }
        out.format = format;
        Ok(out)
    }

    /// Times 2^bits, capped like the binary quantities that ask for it.
    fn shifted_left(self, bits: u32) -> Self {
        let mut out = self;
        for _ in 0..bits {
            match out.mantissa.checked_mul(2) {
                Some(doubled) => out.mantissa = doubled,
                None => return Quantity::new(i64::MAX, self.format),
            }
            out.strip_zeros();
        }
        out
    }

    /// Adds the smallest step of `scale` to a number that has no finer digits.
    fn add_unit(&mut self, scale: i32) {
        self.add(Quantity::scaled(1, scale, self.format));
    }

    /// Rounds away from zero to multiples of 10^scale; answers whether nothing was lost (upstream `RoundUp`).
    pub fn round_up_to(&mut self, scale: i32) -> bool {
        if self.scale >= scale || self.mantissa == 0 {
            return true;
        }
        let drop = (scale - self.scale) as u32;
        let sign = self.mantissa.signum();
        let (kept, rest) = match 10i128.checked_pow(drop) {
            Some(unit) => (self.mantissa / unit, self.mantissa % unit),
            None => (0, self.mantissa),
        };
        self.mantissa = if rest == 0 { kept } else { kept + sign };
        self.scale = scale;
        self.strip_zeros();
        rest == 0
    }

    /// The number in units of 10^scale, rounded away from zero and capped to 64 bits (upstream `ScaledValue`).
    pub fn scaled_value(&self, scale: i32) -> i64 {
        let mut rounded = *self;
        rounded.round_up_to(scale);
        let cap = if rounded.mantissa < 0 {
            i64::MIN
        } else {
            i64::MAX
        };
        let up = (rounded.scale - scale).max(0) as u32;
        if rounded.mantissa == 0 {
            return 0;
        }
        10i128
            .checked_pow(up)
            .and_then(|unit| rounded.mantissa.checked_mul(unit))
            .and_then(|value| i64::try_from(value).ok())
            .unwrap_or(cap)
    }

    /// The number rounded away from zero to an integer.
    pub fn value(&self) -> i64 {
        self.scaled_value(0)
    }

    /// The number in thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i64 {
        self.scaled_value(-3)
    }

    /// The number if it is an integer of 64 bits.
    pub fn as_i64(&self) -> Option<i64> {
        let mut rounded = *self;
        if !rounded.round_up_to(0) {
            return None;
        }
        let value = rounded.value();
        (Quantity::new(value, self.format) == *self).then_some(value)
    }

    /// The nearest floating-point number.
    pub fn to_f64(&self) -> f64 {
        self.mantissa as f64 * 10f64.powi(self.scale)
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// Adds; zero takes over the other's format.
    pub fn add(&mut self, other: Quantity) {
        if self.mantissa == 0 {
            *self = other;
            return;
        }
        if other.mantissa == 0 {
            return;
        }
        let (a, b, scale) = aligned(*self, other);
        // Both are below 10^37 in size after alignment, so the sum fits.
        self.mantissa = a + b;
        self.scale = scale;
        self.strip_zeros();
    }

    /// Subtracts; zero takes over the other's format.
    pub fn sub(&mut self, other: Quantity) {
        self.add(other.negated());
    }

    /// Multiplies.
    pub fn mul(&mut self, by: i64) {
        let mut mantissa = self.mantissa;
        let mut scale = self.scale;
        loop {
            match mantissa.checked_mul(i128::from(by)) {
                Some(product) => {
                    *self = Self::scaled(product, scale, self.format);
                    return;
                }
                None => {
                    mantissa /= 10;
                    scale += 1;
                }
            }
        }
    }

    /// With the sign turned.
    pub fn negated(self) -> Self {
        Quantity {
            mantissa: -self.mantissa,
            ..self
        }
    }

    /// Mantissa and exponent in base 10, the exponent a multiple of 3, as large as it can be.
    fn canonical_decimal(&self) -> (i128, i32, u32) {
        let mut exact = *self;
        exact.strip_zeros();
        let zeros = exact.scale.rem_euclid(3) as u32;
        (exact.mantissa, exact.scale - zeros as i32, zeros)
    }

    fn write_decimal(&self, exponential: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mantissa, exponent, zeros) = self.canonical_decimal();
        write!(f, "{mantissa}{}", &"00"[..zeros as usize])?;
        match DECIMAL.iter().find(|(_, scale)| *scale == exponent) {
            Some((suffix, _)) if !exponential => f.write_str(suffix),
            // Upstream drops a suffix that it has no letter for, and with it the number's size.
            _ if exponent != 0 => write!(f, "e{exponent}"),
            _ => Ok(()),
        }
    }
}

/// Two numbers on one scale, both below 10^37 in size: digits that do not fit at the end are dropped.
fn aligned(a: Quantity, b: Quantity) -> (i128, i128, i32) {
    const ROOM: i128 = 10i128.pow(37);
    let (mut a, mut b) = (a, b);
    let swapped = a.scale < b.scale;
    if swapped {
        std::mem::swap(&mut a, &mut b);
    }
    while a.scale > b.scale && a.mantissa.abs() < ROOM / 10 {
        a.mantissa *= 10;
        a.scale -= 1;
    }
    while a.scale > b.scale && b.mantissa != 0 {
        b.mantissa /= 10;
        b.scale += 1;
    }
    let scale = a.scale;
    while a.mantissa.abs() >= ROOM || b.mantissa.abs() >= ROOM {
        a.mantissa /= 10;
        b.mantissa /= 10;
        a.scale += 1;
    }
    let scale = scale.max(a.scale);
    if swapped {
        (b.mantissa, a.mantissa, scale)
    } else {
        (a.mantissa, b.mantissa, scale)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no precision lost, no fraction, the largest suffix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mantissa == 0 {
            return f.write_str("0");
        }
        match self.format {
            Format::DecimalSi => self.write_decimal(false, f),
            Format::DecimalExponent => self.write_decimal(true, f),
            Format::BinarySi => {
                let small = self.abs() < Quantity::new(1024, self.format);
                let whole = if self.scale >= 0 {
                    10i128
                        .checked_pow(self.scale as u32)
                        .and_then(|unit| self.mantissa.checked_mul(unit))
                } else {
                    None
                };
                match whole {
                    Some(mut whole) if !small => {
                        let mut power = 0;
                        while whole % 1024 == 0 && power + 1 < BINARY.len() {
                            whole /= 1024;
                            power += 1;
                        }
                        write!(f, "{whole}{}", BINARY[power])
                    }
                    // Upstream shows small numbers and fractions as decimals.
                    _ => self.write_decimal(false, f),
                }
            }
        }
    }
}

impl Quantity {
    /// Without its sign.
    pub fn abs(self) -> Self {
        Quantity {
            mantissa: self.mantissa.abs(),
            ..self
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    /// By number; the format does not count.
    fn cmp(&self, other: &Self) -> Ordering {
        let signs = self.sign().cmp(&other.sign());
        if signs != Ordering::Equal || self.mantissa == 0 {
            return signs;
        }
        // The place of the first digit decides, unless it is the same: then 38 digits suffice to align.
        let place = |q: &Quantity| q.mantissa.unsigned_abs().ilog10() as i32 + q.scale;
        let sizes = place(self).cmp(&place(other));
        let sizes = if sizes != Ordering::Equal {
            sizes
        } else {
            let low = self.scale.min(other.scale);
            let at = |q: &Quantity| {
                10u128
                    .checked_pow((q.scale - low) as u32)
                    .and_then(|unit| q.mantissa.unsigned_abs().checked_mul(unit))
                    .unwrap_or(u128::MAX)
            };
            at(self).cmp(&at(other))
        };
        if self.mantissa < 0 {
            sizes.reverse()
        } else {
            sizes
        }
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Quantity::parse(text)
    }
}

/// The text that an object keeps for a quantity that came in as `text`: its canonical form, except that upstream
/// keeps a text as it came when its number looks canonical once the point is taken out
/// (`1.5Gi` becomes `1536Mi`, but `1.125` stays).
pub fn wire_form(text: &str) -> Result<String, QuantityError> {
    let text = text.trim();
    let parsed = Quantity::parse(text)?;
    let parts = split(text)?;
    let Some((format, exponent)) = suffix_of(parts.suffix) else {
        return Err(QuantityError::Suffix);
    };
    let whole = if parts.whole.is_empty() {
        "0"
    } else {
        parts.whole
    };
    let digits = format!("{whole}{}", parts.fraction);
    let short = digits.len() as i32;
    let verbatim = match format {
        Format::BinarySi => {
            // `15 - digits - 0.3 * exponent - 1` is upstream's bound for its fast path.
            let fits = parts.fraction.is_empty() && 14 - short - exponent * 3 / 10 >= 0;
            // Below 2^10 a binary suffix is the empty one, which reads as decimal.
            fits && digits.parse::<i64>().is_ok_and(|value| value & 7 != 0)
        }
        Format::DecimalSi | Format::DecimalExponent => {
            let scale = exponent - parts.fraction.len() as i32;
            short <= 18
                && scale >= NANO
                && scale % 3 == 0
                && !digits.ends_with("000")
                && !digits.starts_with('0')
        }
    };
    Ok(if verbatim {
        text.to_owned()
    } else {
        parsed.to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, want) in [
            ("0", "0"),
            ("0.0Gi", "0"),
            ("1", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("0.1m", "100u"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("1.0000000001", "1000000001n"),
            ("1Ki", "1Ki"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("512Ki", "512Ki"),
            ("1.5", "1500m"),
            ("0.0001Ki", "102400u"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e6", "12e6"),
            ("1e-10", "1e-9"),
            ("1E", "1E"),
            ("1000E", "1e21"),
            ("100Ei", "9223372036854775807"),
            ("-1Gi", "-1Gi"),
            ("+1k", "1k"),
            ("1.", "1"),
            (".5", "500m"),
            ("-", "0"),
            ("4.", "4"),
            ("1e1000", "10e999"),
        ] {
            let got = Quantity::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(got.to_string(), want, "{text}");
        }
        for (text, want) in [
            ("", QuantityError::Format),
            ("a", QuantityError::Format),
            ("1 Gi", QuantityError::Format),
            ("1.1.1", QuantityError::Format),
            ("1Gi1x", QuantityError::Format),
            ("1gi", QuantityError::Format),
            ("1Kii", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1i", QuantityError::Suffix),
        ] {
            assert_eq!(Quantity::parse(text), Err(want), "{text}");
        }
    }

    #[test]
    fn wire_forms() {
        for (text, want) in [
            ("1.125", "1.125"),
            ("1.5", "1500m"),
            ("1000", "1k"),
            ("1000m", "1"),
            ("100Mi", "100Mi"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("+1", "+1"),
            ("01", "01"),
            (" 2 ", "2"),
        ] {
            assert_eq!(wire_form(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn numbers() {
        for (text, value, milli) in [
            ("1.1", 2, 1100),
            ("-1.1", -2, -1100),
            ("1u", 1, 1),
            ("100m", 1, 100),
            ("1Ki", 1024, 1_024_000),
            ("1e30", i64::MAX, i64::MAX),
        ] {
            let q = Quantity::parse(text).expect(text);
            assert_eq!((q.value(), q.milli_value()), (value, milli), "{text}");
        }
        for (a, b, want) in [
            ("1", "1000m", Ordering::Equal),
            ("1Ki", "1k", Ordering::Greater),
            ("-2", "-1", Ordering::Less),
            ("0", "-1n", Ordering::Greater),
            ("1e100", "1e99", Ordering::Greater),
            ("1E", "1Ei", Ordering::Less),
        ] {
            let of = |text| Quantity::parse(text).expect("valid");
            assert_eq!(of(a).cmp(&of(b)), want, "{a} {b}");
        }
    }

    #[test]
    fn arithmetic() {
        for (a, b, sum, difference) in [
            ("1Gi", "512Mi", "1536Mi", "512Mi"),
            ("0", "1Ki", "1Ki", "-1Ki"),
            ("100m", "1", "1100m", "-900m"),
            ("1e3", "500", "1500", "500"),
            ("1e36", "1n", "1e36", "1e36"),
        ] {
            let of = |text: &str| Quantity::parse(text).expect("valid");
            let (mut plus, mut minus) = (of(a), of(a));
            plus.add(of(b));
            minus.sub(of(b));
            let same = |text: &str, q: Quantity| assert_eq!(of(text), q, "{a} {b}: {q}");
            same(sum, plus);
            same(difference, minus);
        }
        let mut q = Quantity::parse("1.5Gi").expect("valid");
        q.mul(3);
        assert_eq!(q.to_string(), "4608Mi");
    }

    proptest::proptest! {
        #[test]
        fn canonical_form_keeps_the_number(mantissa in -1_000_000_000_000i64..1_000_000_000_000, suffix in 0usize..17) {
            let suffixes = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "e3", "e-3", "E+6"];
            let q = Quantity::parse(&format!("{mantissa}{}", suffixes[suffix])).expect("valid");
            let again = Quantity::parse(&q.to_string()).expect("canonical forms parse");
            proptest::prop_assert_eq!(q, again);
            proptest::prop_assert_eq!(again.to_string(), q.to_string());
        }
    }
}
