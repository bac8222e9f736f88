//! Reads JSON tokens, with the error texts of Go's scanner.

use std::borrow::Cow;

use crate::codec::MAX_DEPTH;

/// A position in a JSON text. Errors are the message alone.
pub(super) struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    pos: usize,
    depth: usize,
}

type Read<T> = Result<T, String>;

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Lexer<'a> {
        Lexer {
            text,
            bytes: text.as_bytes(),
            pos: 0,
            depth: 0,
        }
    }

    /// Skips white space.
    pub(super) fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.bytes.get(self.pos) {
            self.pos += 1;
        }
    }

    /// The byte at the position.
    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.pos).copied()
    }

    /// How Go's type errors call the token at the position.
    pub(super) fn token_word(&self) -> &'static str {
        match self.peek() {
            Some(b'{') => "object",
            Some(b'[') => "array",
            Some(b'"') => "string",
            Some(b't' | b'f') => "bool",
            Some(b'n') => "null",
            _ => "number",
        }
    }

    /// An error about the byte at the position.
    fn wrong(&self, context: &str) -> String {
        let Some(c) = self.text.get(self.pos..).and_then(|t| t.chars().next()) else {
            return "unexpected end of JSON input".to_string();
        };
        // Go's scanner looks at bytes.
        let byte = self.bytes[self.pos];
        let shown = match c {
            '\'' => "'\\''".to_string(),
            '"' => "'\"'".to_string(),
            _ => {
                let quoted = crate::text::quote(&char::from(byte).to_string());
                format!("'{}'", quoted.trim_matches('"'))
            }
        };
        format!("invalid character {shown} {context}")
    }

    /// After the document: nothing but white space.
    pub(super) fn end(&mut self) -> Read<()> {
        self.space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.wrong("after top-level value")),
        }
    }

    fn enter(&mut self) -> Read<()> {
        if self.depth >= MAX_DEPTH {
            return Err(self.wrong("exceeded max depth"));
        }
        self.depth += 1;
        self.pos += 1;
        Ok(())
    }

    /// Reads the object at the position; `member` is called at each value and must read it.
    pub(super) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Read<()>,
    ) -> Read<()> {
        self.enter()?;
        self.space();
        if self.peek() == Some(b'}') {
            self.pos += 1;
            self.depth -= 1;
            return Ok(());
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.wrong("looking for beginning of object key string"));
            }
            let key = self.string()?;
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.wrong("after object key"));
            }
            self.pos += 1;
            self.space();
            member(self, key)?;
            self.space();
            match self.peek() {
                Some(b',') => self.pos += 1,
                Some(b'}') => {
                    self.pos += 1;
                    self.depth -= 1;
                    return Ok(());
                }
                _ => return Err(self.wrong("after object key:value pair")),
            }
        }
    }

    /// Reads the list at the position; `item` is called at each value and must read it.
    pub(super) fn array(&mut self, mut item: impl FnMut(&mut Self) -> Read<()>) -> Read<()> {
        self.enter()?;
        self.space();
        if self.peek() == Some(b']') {
            self.pos += 1;
            self.depth -= 1;
            return Ok(());
        }
        loop {
            self.space();
            item(self)?;
            self.space();
            match self.peek() {
                Some(b',') => self.pos += 1,
                Some(b']') => {
                    self.pos += 1;
                    self.depth -= 1;
                    return Ok(());
                }
                _ => return Err(self.wrong("after array element")),
            }
        }
    }

    /// Reads the string at the position (on its opening quote).
    pub(super) fn string(&mut self) -> Read<Cow<'a, str>> {
        self.pos += 1;
        let start = self.pos;
        loop {
            match self.bytes.get(self.pos) {
                Some(b'"') => {
                    let found = &self.text[start..self.pos];
                    self.pos += 1;
                    return Ok(Cow::Borrowed(found));
                }
                Some(b'\\') => return self.escaped_string(start).map(Cow::Owned),
                Some(c) if *c < 0x20 => return Err(self.wrong("in string literal")),
                Some(_) => self.pos += 1,
                None => return Err(self.wrong("")),
            }
        }
    }

    fn escaped_string(&mut self, start: usize) -> Read<String> {
        let mut out = self.text[start..self.pos].to_string();
        let mut plain = self.pos;
        loop {
            match self.bytes.get(self.pos) {
                Some(b'"') => {
                    out.push_str(&self.text[plain..self.pos]);
                    self.pos += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    out.push_str(&self.text[plain..self.pos]);
                    self.pos += 1;
                    self.escape(&mut out)?;
                    plain = self.pos;
                }
                Some(c) if *c < 0x20 => return Err(self.wrong("in string literal")),
                Some(_) => self.pos += 1,
                None => return Err(self.wrong("")),
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Read<()> {
        let plain = match self.peek() {
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.pos += 1;
                let first = self.hex4()?;
                out.push(self.utf16(first)?);
                return Ok(());
            }
            _ => return Err(self.wrong("in string escape code")),
        };
        out.push(plain);
        self.pos += 1;
        Ok(())
    }

    fn hex4(&mut self) -> Read<u32> {
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|c| char::from(c).to_digit(16)) else {
                return Err(self.wrong("in \\u hexadecimal character escape"));
            };
            code = code * 16 + digit;
            self.pos += 1;
        }
        Ok(code)
    }

    /// A lone surrogate becomes U+FFFD, as in Go.
    fn utf16(&mut self, first: u32) -> Read<char> {
        if (0xD800..0xDC00).contains(&first) && self.bytes[self.pos..].starts_with(b"\\u") {
            let back = self.pos;
            self.pos += 2;
            let second = self.hex4()?;
            if (0xDC00..0xE000).contains(&second) {
                let code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.pos = back;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    /// Reads the number at the position and gives its text.
    pub(super) fn number(&mut self) -> Read<&'a str> {
        let start = self.pos;
        if self.peek() == Some(b'-') {
            self.pos += 1;
        }
        match self.peek() {
            Some(b'0') => self.pos += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ if self.pos > start => return Err(self.wrong("in numeric literal")),
            _ => return Err(self.wrong("looking for beginning of value")),
        }
        if self.peek() == Some(b'.') {
            self.pos += 1;
            if !matches!(self.peek(), Some(b'0'..=b'9')) {
                return Err(self.wrong("after decimal point in numeric literal"));
            }
            self.digits();
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.pos += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.pos += 1;
            }
            if !matches!(self.peek(), Some(b'0'..=b'9')) {
                return Err(self.wrong("in exponent of numeric literal"));
            }
            self.digits();
        }
        Ok(&self.text[start..self.pos])
    }

    fn digits(&mut self) {
        while let Some(b'0'..=b'9') = self.peek() {
            self.pos += 1;
        }
    }

    /// Reads `true`, `false` or `null`, whichever the first letter says.
    pub(super) fn literal(&mut self) -> Read<&'static str> {
        let word = match self.peek() {
            Some(b't') => "true",
            Some(b'f') => "false",
            _ => "null",
        };
        for expected in word.bytes() {
            if self.peek() != Some(expected) {
                let context = format!("in literal {word} (expecting '{}')", char::from(expected));
                return Err(self.wrong(&context));
            }
            self.pos += 1;
        }
        Ok(word)
    }

    /// Skips the value at the position, checking its syntax, and gives its text.
    pub(super) fn raw(&mut self) -> Read<&'a str> {
        let start = self.pos;
        self.skip()?;
        Ok(&self.text[start..self.pos])
    }

    /// Skips the value at the position, checking its syntax.
    pub(super) fn skip(&mut self) -> Read<()> {
        match self.peek() {
            Some(b'{') => self.object(|lexer, _| lexer.skip()),
            Some(b'[') => self.array(Self::skip),
            Some(b'"') => self.string().map(drop),
            Some(b't' | b'f' | b'n') => self.literal().map(drop),
            _ => self.number().map(drop),
        }
    }
}
