//! Words of an expression.

use std::sync::Arc;

use super::error::Issue;

/// A word.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the names say it all
pub enum Token {
    Ident(Arc<str>),
    /// A name between backticks, good only as a member's name.
    Quoted(Arc<str>),
    Int(u64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    Op(&'static str),
    End,
}

const OPERATORS: [&str; 26] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "-", "+", "*", "/", "%", "?", ":", ".", ",",
    "(", ")", "[", "]", "{", "}", "in", "=",
];

/// Cuts `source` into words with the places where they begin. Words that are none are told and left out.
pub fn lex(source: &str) -> (Vec<(usize, Token)>, Vec<Issue>) {
    let mut lexer = Lexer {
        chars: source.chars().collect(),
        at: 0,
        issues: Vec::new(),
    };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_space();
        let start = lexer.at;
        if start >= lexer.chars.len() {
            tokens.push((start, Token::End));
            break;
        }
        if let Some(token) = lexer.next() {
            tokens.push((start, token));
        }
    }
    (tokens, lexer.issues)
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    issues: Vec<Issue>,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn issue(&mut self, at: usize, message: impl Into<String>) {
        self.issues.push(Issue {
            at,
            message: format!("Syntax error: {}", message.into()),
        });
    }

    fn skip_space(&mut self) {
        while let Some(c) = self.peek(0) {
            if c == '/' && self.peek(1) == Some('/') {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else if matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{c}') {
                self.at += 1;
            } else {
                break;
            }
        }
    }

    fn next(&mut self) -> Option<Token> {
        let c = self.peek(0)?;
        if let Some(prefix) = self.string_prefix() {
            return self.string(prefix);
        }
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit())) {
            return self.number();
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let start = self.at;
            while self
                .peek(0)
                .is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
            {
                self.at += 1;
            }
            let word: String = self.chars[start..self.at].iter().collect();
            return Some(match word.as_str() {
                "in" => Token::Op("in"),
                _ => Token::Ident(word.into()),
            });
        }
        if c == '`' {
            let start = self.at;
            self.at += 1;
            while self.peek(0).is_some_and(|c| {
                c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | ' ')
            }) {
                self.at += 1;
            }
            let word: String = self.chars[start + 1..self.at].iter().collect();
            if self.peek(0) != Some('`') || word.is_empty() {
                self.issue(start, format!("token recognition error at: '`{word}'"));
                return None;
            }
            self.at += 1;
            return Some(Token::Quoted(word.into()));
        }
        for operator in OPERATORS {
            let len = operator.chars().count();
            let fits = operator
                .chars()
                .enumerate()
                .all(|(i, c)| self.peek(i) == Some(c));
            if fits && operator != "=" {
                self.at += len;
                return Some(Token::Op(operator));
            }
        }
        let start = self.at;
        self.at += 1;
        self.issue(start, format!("token recognition error at: '{c}'"));
        None
    }

    /// Letters before a quote: raw, bytes, or both.
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let is_quote = |c: Option<char>| matches!(c, Some('"' | '\''));
        let (mut raw, mut bytes, mut len) = (false, false, 0);
        while len < 2 {
            match self.peek(len) {
                Some('r' | 'R') if !raw => raw = true,
                Some('b' | 'B') if !bytes => bytes = true,
                _ => break,
            }
            len += 1;
        }
        is_quote(self.peek(len)).then_some((raw, bytes, len))
    }

    fn string(&mut self, (raw, bytes, prefix): (bool, bool, usize)) -> Option<Token> {
        let start = self.at;
        self.at += prefix;
        let quote = self.peek(0)?;
        let long = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        self.at += if long { 3 } else { 1 };
        let mut text = String::new();
        let mut out: Vec<u8> = Vec::new();
        loop {
            let Some(c) = self.peek(0) else {
                let seen: String = self.chars[start..].iter().collect();
                self.issue(start, format!("token recognition error at: '{seen}'"));
                return None;
            };
            if c == quote && (!long || (self.peek(1) == Some(quote) && self.peek(2) == Some(quote)))
            {
                self.at += if long { 3 } else { 1 };
                break;
            }
            if !long && matches!(c, '\n' | '\r') {
                let seen: String = self.chars[start..self.at].iter().collect();
                self.issue(start, format!("token recognition error at: '{seen}'"));
                return None;
            }
            self.at += 1;
            if c == '\\' && !raw {
                match self.escape(bytes) {
                    Some(Escaped::Char(c)) => {
                        text.push(c);
                        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                    Some(Escaped::Byte(b)) => out.push(b),
                    None => {
                        self.issue(start, "invalid escape sequence in string literal");
                        return None;
                    }
                }
            } else {
                if c == '\\' {
                    // Raw: the next character stands for itself, a quote included.
                    if let Some(next) = self.peek(0).filter(|next| *next == quote) {
                        text.push(c);
                        out.push(b'\\');
                        self.at += 1;
                        text.push(next);
                        out.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
                        continue;
                    }
                }
                text.push(c);
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Some(if bytes {
            Token::Bytes(out.into())
        } else {
            Token::String(text.into())
        })
    }

    fn escape(&mut self, bytes: bool) -> Option<Escaped> {
        let c = self.peek(0)?;
        self.at += 1;
        let digits = |lexer: &mut Lexer, count: usize, radix: u32| -> Option<u32> {
            let mut number = 0u32;
            for _ in 0..count {
                let digit = lexer.peek(0)?.to_digit(radix)?;
                number = number.checked_mul(radix)?.checked_add(digit)?;
                lexer.at += 1;
            }
            Some(number)
        };
        let plain = match c {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '\\' | '\'' | '"' | '`' | '?' => c,
            'x' | 'X' | 'u' | 'U' | '0'..='3' => {
                let number = match c {
                    'x' | 'X' => digits(self, 2, 16)?,
                    'u' if !bytes => digits(self, 4, 16)?,
                    'U' if !bytes => digits(self, 8, 16)?,
                    '0'..='3' => {
                        self.at -= 1;
                        digits(self, 3, 8)?
                    }
                    _ => return None,
                };
                return if bytes {
                    u8::try_from(number).ok().map(Escaped::Byte)
                } else {
                    char::from_u32(number).map(Escaped::Char)
                };
            }
            _ => return None,
        };
        Some(Escaped::Char(plain))
    }

    fn number(&mut self) -> Option<Token> {
        let start = self.at;
        if self.peek(0) == Some('0') && matches!(self.peek(1), Some('x' | 'X')) {
            self.at += 2;
            let digits = self.take_while(|c| c.is_ascii_hexdigit());
            return self.integer(start, u64::from_str_radix(&digits, 16).ok());
        }
        let mut text = self.take_while(|c| c.is_ascii_digit());
        let mut double = false;
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            double = true;
            self.at += 1;
            text.push('.');
            text.push_str(&self.take_while(|c| c.is_ascii_digit()));
        }
        let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
        if matches!(self.peek(0), Some('e' | 'E'))
            && self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit())
        {
            double = true;
            text.extend(&self.chars[self.at..=self.at + sign]);
            self.at += 1 + sign;
            text.push_str(&self.take_while(|c| c.is_ascii_digit()));
        }
        if double {
            return match text.parse() {
                Ok(number) => Some(Token::Double(number)),
                Err(_) => {
                    self.issue(start, "invalid double literal");
                    None
                }
            };
        }
        self.integer(start, text.parse().ok())
    }

    fn integer(&mut self, start: usize, number: Option<u64>) -> Option<Token> {
        let unsigned = matches!(self.peek(0), Some('u' | 'U'));
        if unsigned {
            self.at += 1;
        }
        match number {
            Some(number) if unsigned => Some(Token::Uint(number)),
            Some(number) => Some(Token::Int(number)),
            None => {
                self.issue(
                    start,
                    if unsigned {
                        "invalid uint literal"
                    } else {
                        "invalid int literal"
                    },
                );
                None
            }
        }
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek(0).is_some_and(&keep) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }
}

enum Escaped {
    Char(char),
    Byte(u8),
}
