//! The `tojson` filter as transformers defines it for chat templates: Python's `json.dumps` with
//! `ensure_ascii=False`. Models are trained on its spaces, and minijinja's own filter escapes for HTML.

use std::io;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, Serde},
};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `", "` and `": "` between items, as Python writes them.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `value | tojson(indent=…)`. `sort_keys` sorts; `ensure_ascii` and `separators` are accepted at the values that
/// templates pass to get this same output.
pub(super) fn tojson(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let _: Option<Value> = kwargs.get("separators")?;
    kwargs.assert_all_used()?;
    if ensure_ascii == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: `ensure_ascii=true` is not supported"));
    }
    if indent.is_some_and(|n| n > 16) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: `indent` is more than 16"));
    }
    let failed =
        |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, "tojson failed").with_source(e);
    // Values keep the order in which a template built them; going through `serde_json::Value` sorts.
    let value = match sort_keys {
        Some(true) => Value::from(Serde(serde_json::to_value(&value).map_err(failed)?)),
        _ => value,
    };
    let mut out = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter)),
        Some(n) => {
            let spaces = " ".repeat(n);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
    }
    .map_err(failed)?;
    let text = String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(text))
}
