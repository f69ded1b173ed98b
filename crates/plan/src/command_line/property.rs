//! Properties of what QEMU is told of, in its two notations: words of the command line, and JSON for QMP.

/// A QEMU property: the same list is printed on the command line and sent by QMP, so that a device plugged in later is the
/// one a start would have made.
pub type Property = (&'static str, Value);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(u64),
    Flag(bool),
    Group(Vec<Property>),
    Null,
}

impl Value {
    pub(crate) fn text(text: impl Into<String>) -> Value {
        Value::Text(text.into())
    }
}

/// A value as QMP wants it.
#[must_use]
pub fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) => text.as_str().into(),
        Value::Number(number) => (*number).into(),
        Value::Flag(flag) => (*flag).into(),
        Value::Null => serde_json::Value::Null,
        Value::Group(inner) => {
            inner.iter().map(|(key, value)| ((*key).to_owned(), json(value))).collect()
        }
    }
}

/// `driver,key=value,…` as -device wants it and `driver=driver,key=value,…` as -blockdev does. Commas in values are doubled;
/// what is grouped has its group's name before it.
pub(super) fn properties_text(properties: &[Property]) -> String {
    let mut parts = Vec::with_capacity(properties.len());
    flatten("", properties, &mut parts);
    let is_device = properties.iter().any(|(key, _)| *key == "id");
    if is_device && let Some(driver) = parts.first_mut() {
        let name = driver.trim_start_matches("driver=").trim_start_matches("qom-type=");
        *driver = name.to_owned();
    }
    parts.join(",")
}

fn flatten(group: &str, properties: &[Property], parts: &mut Vec<String>) {
    for (key, value) in properties {
        let value = match value {
            Value::Text(text) => text.replace(',', ",,"),
            Value::Number(number) if *key == "wwn" => format!("{number:#x}"),
            Value::Number(number) => number.to_string(),
            Value::Flag(flag) => (if *flag { "on" } else { "off" }).into(),
            Value::Group(inner) => {
                flatten(&format!("{group}{key}."), inner, parts);
                continue;
            }
            // Has no form in this notation; who needs it writes JSON.
            Value::Null => continue,
        };
        parts.push(format!("{group}{key}={value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_words_of_the_command_line() {
        let cache = vec![("direct", Value::Flag(true)), ("no-flush", Value::Flag(false))];
        let mut node = vec![
            ("driver", Value::text("file")),
            ("filename", Value::text("/a,b")),
            ("cache", Value::Group(cache)),
            ("backing", Value::Null),
            ("wwn", Value::Number(16)),
            ("lun", Value::Number(16)),
        ];
        let text = "filename=/a,,b,cache.direct=on,cache.no-flush=off,wwn=0x10,lun=16";
        assert_eq!(properties_text(&node), format!("driver=file,{text}"));
        // A device's type has no name.
        node.push(("id", Value::text("a")));
        assert_eq!(properties_text(&node), format!("file,{text},id=a"));
    }
}
