//! The health script that ships for Argo CD, run as Argo CD runs it. `tests/tests/control_plane/argocd.rs` runs it too.

use std::path::{Path, PathBuf};

use mlua::{Lua, LuaOptions, StdLib, Value as LuaValue};
use serde_json::Value;

/// Where the script and its tests lie.
pub(crate) fn folder() -> PathBuf {
    // From whichever package compiles this file.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().find(|folder| folder.join("Cargo.lock").is_file()).unwrap();
    root.join("manifests/argocd/resource_customizations/candela.dev/LlmDeployment")
}

fn lua_value(lua: &Lua, value: &Value) -> LuaValue {
    match value {
        Value::Null => LuaValue::Nil,
        Value::Bool(value) => LuaValue::Boolean(*value),
        Value::Number(number) => LuaValue::Number(number.as_f64().unwrap()),
        Value::String(text) => LuaValue::String(lua.create_string(text).unwrap()),
        Value::Array(list) => {
            let table = lua.create_table().unwrap();
            for (at, item) in list.iter().enumerate() {
                table.set(at + 1, lua_value(lua, item)).unwrap();
            }
            LuaValue::Table(table)
        }
        Value::Object(map) => {
            let table = lua.create_table().unwrap();
            for (key, item) in map {
                table.set(key.as_str(), lua_value(lua, item)).unwrap();
            }
            LuaValue::Table(table)
        }
    }
}

/// Status and message that Argo CD would show of a resource; like there, the script gets no I/O.
pub(crate) fn health(object: &Value) -> (String, String) {
    let script = std::fs::read_to_string(folder().join("health.lua")).unwrap();
    let lua = Lua::new_with(StdLib::TABLE | StdLib::STRING | StdLib::MATH, LuaOptions::default()).unwrap();
    lua.globals().set("obj", lua_value(&lua, object)).unwrap();
    let found: mlua::Table = lua.load(&script).eval().unwrap();
    (found.get("status").unwrap(), found.get("message").unwrap())
}
