//! Configuration files: parsed and checked once, before anything starts.
//!
//! One configuration has three sources; a later one wins over an earlier one, key by key:
//!
//! 1. the file, in TOML;
//! 2. environment variables `ALBA_<NAME>__<SECTION>__<KEY>`. `NAME` is the program's name in upper case with `-` as
//!    `_`; the rest is the key's path in upper case, its parts joined by two underscores. For the proxy
//!    `ALBA_PROXY__LISTEN` is `listen` and `ALBA_PROXY__CLIENT__UPLOAD_SLACK` is `client.upload_slack`;
//! 3. `--set section.key=value`, in the order given.
//!
//! A value of the last two is read as TOML (`0.3`, `true`, `[1, 2]`, `"text"`); what is no TOML value is taken as text
//! as it stands (`--set listen=127.0.0.1:8000`). An unknown key is an error wherever it comes from, and names itself
//! and its line: this needs `#[serde(deny_unknown_fields)]` on the types.
//!
//! Everything here is a pure function: who calls reads the file and the environment.

mod live;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

pub use live::{Live, Reloaded, reload};

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The program's name, for instance `proxy` or `asd-server`: makes the prefix of environment variables.
    pub name: String,
    /// The file's path (for messages) and text.
    pub file: Option<(PathBuf, String)>,
    /// The whole environment; what does not begin with the prefix is ignored.
    pub env: Vec<(String, String)>,
    /// Arguments of `--set`.
    pub set: Vec<String>,
}

/// The place of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of the file, counted from 1.
    Line {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
    },
    /// The file as a whole.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// An argument of `--set`.
    Set(String),
    /// No source: there is no file and a key has no default.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{}, line {line}", file.display()),
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Set(argument) => write!(f, "--set {argument}"),
            Self::Nowhere => f.write_str("configuration"),
        }
    }
}

/// Why a configuration is refused. The text says where, which key, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {message}")]
pub struct ConfigError {
    /// Where.
    pub place: Place,
    /// What is wrong and what to do.
    pub message: String,
}

/// Reads and merges the sources, and checks them against `T`.
pub fn load<T: DeserializeOwned>(sources: &Sources) -> Result<T, ConfigError> {
    let texts = Texts::new(sources)?;
    Document::parse(&texts)?.into_typed()
}

/// The sources as texts that a [`Document`] borrows from.
///
/// Each override stands behind as much white space as all earlier sources have bytes, so that positions in different
/// sources never overlap and an error's position tells its source.
pub struct Texts {
    file: Option<(PathBuf, String)>,
    overrides: Vec<Override>,
}

struct Override {
    place: Place,
    path: Vec<String>,
    /// White space, then `x = value`.
    text: String,
    /// Where its own text begins.
    start: usize,
}

/// What stands before the value in an override's text, to make it a document.
const ASSIGN: &str = "x = ";

impl Texts {
    /// Takes the sources apart.
    pub fn new(sources: &Sources) -> Result<Self, ConfigError> {
        let mut texts = Self { file: sources.file.clone(), overrides: Vec::new() };
        let prefix = variable_prefix(&sources.name);
        let mut variables: Vec<_> =
            sources.env.iter().filter(|(name, _)| name.starts_with(&prefix)).collect();
        variables.sort();
        for (name, value) in variables {
            let path = name.strip_prefix(&prefix).unwrap_or_default().to_ascii_lowercase();
            let path = path.split("__").map(str::to_owned).collect();
            texts.push(Place::Variable(name.clone()), path, value);
        }
        for argument in &sources.set {
            let place = Place::Set(argument.clone());
            let Some((path, value)) = argument.split_once('=') else {
                let message = "no `=` in it; write --set section.key=value".to_owned();
                return Err(ConfigError { place, message });
            };
            texts.push(place, path.trim().split('.').map(str::to_owned).collect(), value.trim());
        }
        Ok(texts)
    }

    fn push(&mut self, place: Place, path: Vec<String>, value: &str) {
        let before = self.overrides.last().map(|last| last.text.len());
        let before = before.or_else(|| self.file.as_ref().map(|(_, text)| text.len()));
        // One more byte per source: the end of one is never the start of the next.
        let start = before.unwrap_or(0) + 1;
        let text = format!("{}{ASSIGN}{value}", " ".repeat(start));
        self.overrides.push(Override { place, path, text, start });
    }

    fn place(&self, span: Option<Range<usize>>) -> Place {
        let whole = || self.file.as_ref().map_or(Place::Nowhere, |(path, _)| Place::File(path.clone()));
        let Some(at) = span.map(|span| span.start) else { return whole() };
        if let Some((path, text)) = &self.file
            && at <= text.len()
        {
            let line = text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
            return Place::Line { file: path.clone(), line };
        }
        (self.overrides.iter())
            .find(|source| (source.start..=source.text.len()).contains(&at))
            .map_or_else(whole, |source| source.place.clone())
    }
}

/// The merged sources, before they are checked against a type.
pub struct Document<'t> {
    table: DeTable<'t>,
    texts: &'t Texts,
}

impl<'t> Document<'t> {
    /// Parses and merges.
    pub fn parse(texts: &'t Texts) -> Result<Self, ConfigError> {
        let mut table = match &texts.file {
            None => DeTable::new(),
            Some((_, text)) => (DeTable::parse(text))
                .map_err(|error| ConfigError {
                    place: texts.place(error.span()),
                    message: format!("not valid TOML: {}", error.message()),
                })?
                .into_inner(),
        };
        for source in &texts.overrides {
            let span = source.start..source.text.len();
            insert(&mut table, &source.path, source.value(), &span)
                .map_err(|message| ConfigError { place: source.place.clone(), message })?;
        }
        Ok(Self { table, texts })
    }

    /// Takes a key of the top level out, when it is there: what all daemons share does not belong to their own types.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, ConfigError> {
        let Some(name) = self.table.keys().find(|name| name.get_ref() == key).cloned() else {
            return Ok(None);
        };
        let Some(value) = self.table.remove(&name) else { return Ok(None) };
        let span = value.span();
        T::deserialize(ValueDeserializer::from(value)).map(Some).map_err(|error| ConfigError {
            place: self.texts.place(Some(error.span().unwrap_or(span))),
            message: format!("key `{key}`: {}", error.message()),
        })
    }

    /// Checks against `T`.
    pub fn into_typed<T: DeserializeOwned>(self) -> Result<T, ConfigError> {
        let Self { table, texts } = self;
        T::deserialize(toml::Deserializer::from(Spanned::new(0..0, table)))
            .map_err(|error| explain(&error, texts))
    }
}

impl Override {
    /// As TOML where it is a TOML value, else the text as it stands.
    fn value(&self) -> Spanned<DeValue<'_>> {
        let parsed = DeTable::parse(&self.text).ok().map(Spanned::into_inner);
        // More than one key: the value had a line break and more assignments behind it.
        match parsed.filter(|table| table.len() == 1).and_then(|table| table.into_iter().next()) {
            Some((_, value)) => value,
            None => {
                let from = self.start + ASSIGN.len();
                let text = self.text.get(from..).unwrap_or_default();
                Spanned::new(from..self.text.len(), DeValue::String(Cow::Borrowed(text)))
            }
        }
    }
}

/// Sets the value at `path`, making the sections on the way.
fn insert<'t>(
    table: &mut DeTable<'t>,
    path: &'t [String],
    value: Spanned<DeValue<'t>>,
    span: &Range<usize>,
) -> Result<(), String> {
    let Some((key, rest)) = path.split_first() else { return Err("it names no key".to_owned()) };
    if key.is_empty() {
        return Err("a part of the key is empty; write section.key".to_owned());
    }
    // The key itself must carry the override's position: an unknown key is reported there.
    let name = Spanned::new(span.clone(), Cow::Borrowed(key.as_str()));
    if rest.is_empty() {
        table.remove(&name);
        table.insert(name, value);
        return Ok(());
    }
    let entry =
        table.entry(name).or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
    match entry.get_mut() {
        DeValue::Table(section) => insert(section, rest, value, span),
        _ => Err(format!("`{key}` is a value, not a section")),
    }
}

/// Words toml's error for people.
fn explain(error: &toml::de::Error, texts: &Texts) -> ConfigError {
    let message = error.message();
    // toml appends the path of the keys it was in: "\nin `client`".
    let whole = error.to_string();
    let inside = whole.strip_prefix(message).unwrap_or_default().trim();
    let inside = inside.strip_prefix("in ").map(|path| path.trim_matches('`'));
    if let Some(missing) = message.strip_prefix("missing field ") {
        let key = missing.trim_matches('`');
        let key = inside.map_or_else(|| key.to_owned(), |path| format!("{path}.{key}"));
        let message = format!("key `{key}` is missing; write it there or give --set {key}=VALUE");
        return ConfigError { place: texts.place(None), message };
    }
    let message = match (message.strip_prefix("unknown field "), inside) {
        (Some(unknown), Some(section)) => format!("unknown key {unknown} (section `{section}`)"),
        (Some(unknown), None) => format!("unknown key {unknown}"),
        (None, Some(path)) => format!("key `{path}`: {message}"),
        (None, None) => message.to_owned(),
    };
    ConfigError { place: texts.place(error.span()), message }
}

fn variable_prefix(name: &str) -> String {
    format!("ALBA_{}__", name.to_ascii_uppercase().replace('-', "_"))
}

/// What is printed instead of a secret.
const MASK: &str = "********";

/// A configuration as TOML with secrets masked: for `--check-config` and `/config`.
pub fn masked<T: Serialize>(config: &T) -> Result<toml::Table, toml::ser::Error> {
    let mut table = toml::Table::try_from(config)?;
    mask(&mut table);
    Ok(table)
}

fn mask(table: &mut toml::Table) {
    for (key, value) in table.iter_mut() {
        let secret = ["secret", "password", "token", "passphrase"].iter().any(|word| key.contains(word))
            || key.ends_with("_key");
        match value {
            toml::Value::Table(section) => mask(section),
            toml::Value::Array(items) if !secret => {
                items.iter_mut().filter_map(toml::Value::as_table_mut).for_each(mask);
            }
            _ if secret => *value = toml::Value::String(MASK.to_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
