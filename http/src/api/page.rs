//! The OpenAPI document as a page for people, without scripts.

use std::fmt::Write;

use serde_json::{Map, Value};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color-scheme:light dark}\
    code{font-family:ui-monospace,monospace}h3{margin-bottom:0}p{margin:.2em 0}dl{margin:.2em 0 1em 1.5em}dd{margin-left:1.5em}";

/// Renders a document.
pub(super) fn render(document: &Value) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Enjambre API</title><style>{STYLE}</style><h1>Enjambre API</h1>\
         <p>The machine-readable description is <a href=\"openapi.json\">openapi.json</a>. Errors are problem details \
         (RFC 9457).</p><h2>Requests</h2>"
    );
    for (path, item) in entries(&document["paths"]) {
        for (method, operation) in entries(item) {
            let _ = request(&mut page, path, method, operation);
        }
    }
    page.push_str("<h2>Types</h2>");
    for (name, schema) in entries(&document["components"]["schemas"]) {
        let name = escape(name);
        let _ = write!(page, "<h3 id=\"{name}\"><code>{name}</code></h3><p>{}</p>", described(schema));
        properties(&mut page, schema);
    }
    page
}

fn request(page: &mut String, path: &str, method: &str, operation: &Value) -> std::fmt::Result {
    let texts = [&operation["summary"], &operation["description"]].map(|text| text.as_str().unwrap_or(""));
    write!(page, "<h3><code>{} {}</code></h3>", method.to_uppercase(), escape(path))?;
    write!(page, "<p>{}</p><dl>", escape(&texts.join(" ")))?;
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = escape(parameter["name"].as_str().unwrap_or(""));
        let (place, schema) = (parameter["in"].as_str().unwrap_or(""), type_of(&parameter["schema"]));
        write!(page, "<dt><code>{name}</code> ({place}): {schema}<dd>{}", described(parameter))?;
    }
    for (kind, content) in entries(&operation["requestBody"]["content"]) {
        write!(page, "<dt>body: {} ({})", type_of(&content["schema"]), escape(kind))?;
    }
    for (status, response) in entries(&operation["responses"]) {
        if status != "default" {
            let body = entries(&response["content"]).next().map(|(_, content)| type_of(&content["schema"]));
            write!(page, "<dt>{}: {}", escape(status), body.as_deref().unwrap_or("no body"))?;
        }
    }
    page.push_str("</dl>");
    Ok(())
}

fn properties(page: &mut String, schema: &Value) {
    let parts = ["allOf", "oneOf"].map(|key| schema[key].as_array());
    page.push_str("<dl>");
    for (name, property) in entries(&schema["properties"]) {
        let name = escape(name);
        let _ = write!(page, "<dt><code>{name}</code>: {}<dd>{}", type_of(property), described(property));
    }
    page.push_str("</dl>");
    for part in parts.into_iter().flatten().flatten() {
        match part.get("$ref") {
            Some(_) => page.push_str(&format!("<p>fields of {}</p>", type_of(part))),
            None => properties(page, part),
        }
    }
}

/// Returns the type of a value as HTML.
fn type_of(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        let name = escape(name);
        return format!("<a href=\"#{name}\"><code>{name}</code></a>");
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| escape(&value.to_string())).collect::<Vec<_>>().join(" | ");
    }
    if let Some(options) = ["oneOf", "anyOf"].iter().find_map(|key| schema[*key].as_array()) {
        return options.iter().map(type_of).collect::<Vec<_>>().join(" | ");
    }
    let name = |kind: &Value| match kind.as_str() {
        Some("array") => format!("list of {}", type_of(&schema["items"])),
        kind => escape(kind.unwrap_or("any")),
    };
    match schema["type"].as_array() {
        Some(kinds) => kinds.iter().map(name).collect::<Vec<_>>().join(" | "),
        None => name(&schema["type"]),
    }
}

fn described(value: &Value) -> String {
    escape(value["description"].as_str().unwrap_or(""))
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter).map(|(name, value)| (name.as_str(), value))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
