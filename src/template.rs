//! `INIT_MESSAGE` and `LEAVE_MESSAGE`: text with a few placeholders, whose values are always JSON-escaped.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::id::{ClientId, Group, Uid};
use crate::json;
use crate::session::Session;

/// A message with placeholders, read once.
#[derive(Debug, Clone)]
pub struct Template {
    parts: Vec<Part>,
    time_zone: TimeZone,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    ClientId,
    Uid,
    Group,
    /// Unix seconds.
    Timestamp,
    /// `Y-m-d H:i:s`.
    Time,
    Session(String),
}

/// What a template is filled with.
#[derive(Debug, Clone, Copy)]
pub struct Filling<'a> {
    /// `{client_id}`
    pub client_id: ClientId,
    /// `{uid}`
    pub uid: Option<&'a Uid>,
    /// `{group}`
    pub group: Option<&'a Group>,
    /// `{session.FIELD}`
    pub session: Option<&'a Session>,
}

/// A placeholder has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing;

impl Template {
    /// Reads a template; none for an empty text. Braces that are no placeholder stay as they are.
    pub fn new(text: &str, time_zone: &TimeZone) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            literal.push_str(before);
            let part = after.split_once('}').and_then(|(name, behind)| Some((placeholder(name)?, behind)));
            rest = if let Some((part, behind)) = part {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(part);
                behind
            } else {
                literal.push('{');
                after
            };
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Some(Self { parts, time_zone: time_zone.clone() })
    }

    /// The message; with `lenient` a placeholder without a value is empty.
    pub fn render(&self, filling: Filling<'_>, lenient: bool) -> Result<String, Missing> {
        let mut out = String::new();
        for part in &self.parts {
            let value = match part {
                Part::Literal(text) => {
                    out.push_str(text);
                    continue;
                }
                Part::ClientId => Some(filling.client_id.to_string()),
                Part::Uid => filling.uid.map(|uid| uid.as_str().to_owned()),
                Part::Group => filling.group.map(|group| group.as_str().to_owned()),
                Part::Timestamp => Some(Timestamp::now().as_second().to_string()),
                Part::Time => {
                    Some(Timestamp::now().to_zoned(self.time_zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string())
                }
                Part::Session(path) => filling.session.and_then(|session| session.scalar(path)),
            };
            match value {
                Some(value) => escape(&value, &mut out),
                None if lenient => {}
                None => return Err(Missing),
            }
        }
        Ok(out)
    }
}

fn placeholder(name: &str) -> Option<Part> {
    Some(match name {
        "client_id" => Part::ClientId,
        "uid" => Part::Uid,
        "group" => Part::Group,
        "timestamp" => Part::Timestamp,
        "time" => Part::Time,
        _ => Part::Session(name.strip_prefix("session.").filter(|path| !path.is_empty())?.to_owned()),
    })
}

/// Appends the inside of a JSON string.
fn escape(value: &str, out: &mut String) {
    let mut quoted = String::new();
    json::write_string(value, &mut quoted);
    out.push_str(quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn render(text: &str, session: Option<&str>, lenient: bool) -> Result<String, Missing> {
        let session: Option<Session> = session.map(|json| serde_json::from_str(json).unwrap());
        let (uid, group) = ("7\"".parse().unwrap(), "room".parse().unwrap());
        let filling = Filling {
            client_id: "7f0000010b5400000001".parse().unwrap(),
            uid: Some(&uid),
            group: Some(&group),
            session: session.as_ref(),
        };
        Template::new(text, &TimeZone::UTC).unwrap().render(filling, lenient)
    }

    #[test]
    fn placeholders_are_replaced_and_json_escaped() {
        let text = r#"{"type":"x","id":"{client_id}","uid":"{uid}","g":"{group}","n":"{session.uname}","age":{session.a.age}}"#;
        let session = r#"{"uname":"Tom \"T\"\n","a":{"age":5}}"#;
        assert_eq!(
            render(text, Some(session), false).unwrap(),
            r#"{"type":"x","id":"7f0000010b5400000001","uid":"7\"","g":"room","n":"Tom \"T\"\n","age":5}"#
        );
    }

    #[test]
    fn other_braces_stay() {
        for text in ["{}", "{", "}", "{{", "{unknown}", "{session}", "{session.}", r#"{"a":{"b":1}}"#] {
            assert_eq!(render(text, None, false).unwrap(), text);
        }
        assert_eq!(render("{{uid}}", None, false).unwrap(), r#"{7\"}"#);
    }

    #[test]
    fn a_missing_value_is_told_or_empty() {
        assert_eq!(render("hi {session.uname}!", Some(r#"{"uname":[1]}"#), false), Err(Missing));
        assert_eq!(render("hi {session.uname}!", None, true).unwrap(), "hi !");
    }

    #[test]
    fn times_are_unix_seconds_and_the_local_form() {
        let second = Timestamp::now().as_second();
        assert!(render("{timestamp}", None, false).unwrap().parse::<i64>().unwrap() - second <= 1);
        let time = render("{time}", None, false).unwrap();
        assert!(jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", &time).is_ok(), "{time}");
    }

    proptest! {
        #[test]
        fn any_text_is_a_template(text in ".{1,60}") {
            if let Some(template) = Template::new(&text, &TimeZone::UTC) {
                let id = "7f0000010b5400000001".parse().unwrap();
                drop(template.render(Filling { client_id: id, uid: None, group: None, session: None }, true));
            }
        }
    }
}
