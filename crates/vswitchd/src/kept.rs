//! What another version of hpvmnetd wrote into the file `ports` and this one does not know. It is kept where it stands when
//! the file is written again, so that whoever goes back to a version and comes again loses nothing. Pure; hpvmnetd calls it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::wanted::Wanted;

/// The text a switch was last written as, with all that stood in it.
#[derive(Clone, Debug, Default)]
pub struct Kept(Value);

impl Kept {
    /// Of a text that [`Wanted::read`] has read.
    #[must_use]
    pub fn of(text: &str) -> Kept {
        Kept(serde_json::from_str(text).unwrap_or_default())
    }

    /// The fields that this version would lose, as a reader of the file finds them: `ports.rules.name`.
    #[must_use]
    pub fn unknown(&self, wanted: &Wanted) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        let mut value = wanted.value();
        each_pair(&self.0, &mut value, &mut |path, before, now| {
            let names = before.keys().filter(|name| !now.contains_key(*name));
            paths.extend(names.map(|name| format!("{path}{name}")));
        });
        paths
    }

    /// The switch as it is to be now, with what is kept. What belonged to a port that is gone is gone with it.
    #[must_use]
    pub fn rewritten(&mut self, wanted: &Wanted) -> String {
        let mut value = wanted.value();
        // Every field that we know is always written, so one that is missing is one that we do not know.
        each_pair(&self.0, &mut value, &mut |_, before, now| {
            for (name, old) in before {
                now.entry(name).or_insert_with(|| old.clone());
            }
        });
        let text = value.to_string() + "\n";
        self.0 = value;
        text
    }
}

type Fields = Map<String, Value>;

/// The objects that versions add fields to, as they were and as they are: the switch, each port, and the rules of each port.
/// Values are not among them: that of a choice is an object with one name, and two of them would be no choice.
fn each_pair(before: &Value, now: &mut Value, visit: &mut impl FnMut(&str, &Fields, &mut Fields)) {
    let ports = before["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    for port in now["ports"].as_array_mut().into_iter().flatten() {
        let Some(old) = ports.iter().find(|old| old["port"] == port["port"]) else { continue };
        pair(&old["rules"], &mut port["rules"], "ports.rules.", visit);
        pair(old, port, "ports.", visit);
    }
    pair(before, now, "", visit);
}

fn pair(
    before: &Value,
    now: &mut Value,
    path: &str,
    visit: &mut impl FnMut(&str, &Fields, &mut Fields),
) {
    if let (Some(before), Some(now)) = (before.as_object(), now.as_object_mut()) {
        visit(path, before, now);
    }
}

#[cfg(test)]
mod tests {
    use hpvm_model::{
        GuestNumber, MacAddress, NicKind, PciSlot, PortNumber, PortRules, PortVlan, SwitchNumber,
        SwitchState,
    };

    use super::*;
    use crate::wanted::{Plug, Unreadable};

    fn plug(number: u16) -> Plug {
        Plug {
            port: PortNumber::new(number).unwrap(),
            guest: "guest".parse().unwrap(),
            number: GuestNumber::new(number.into()).unwrap(),
            slot: PciSlot::new(0, 1).unwrap(),
            kind: NicKind::AvioLan,
            mac: MacAddress::new([2, 0, 0, 0, 0, 1]),
            features: Some(7),
            rules: PortRules {
                vlan: PortVlan::Untagged(5.try_into().unwrap()),
                ..Default::default()
            },
        }
    }

    /// A switch with two ports, as a version writes it that knows more of each.
    fn newer() -> String {
        let number = SwitchNumber::new(2).unwrap();
        let mut wanted = Wanted::new(number, "sw1".parse().unwrap(), SwitchState::Up);
        wanted.put(plug(1));
        wanted.put(plug(2));
        let mut value = wanted.value();
        value["speed"] = serde_json::json!({ "of": 9 });
        value["ports"][0]["queues"] = 4.into();
        value["ports"][0]["rules"]["colour"] = "red".into();
        value["ports"][1]["queues"] = 2.into();
        value.to_string()
    }

    fn read(text: &str) -> Wanted {
        Wanted::read(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn what_a_newer_version_wrote_stays_where_it_stood() {
        let (mut wanted, mut kept) = (read(&newer()), Kept::of(&newer()));
        let unknown: Vec<String> = kept.unknown(&wanted).into_iter().collect();
        assert_eq!(unknown, ["ports.queues", "ports.rules.colour", "speed"]);
        let first = wanted.ports.remove(0);
        // The ports may change their places, and what is known of them changes.
        wanted.ports[0].features = Some(3);
        let vlan = PortVlan::Trunk("20".parse().unwrap());
        wanted.ports.push(Plug { rules: PortRules { vlan, ..first.rules }, ..first });
        let text = kept.rewritten(&wanted);
        assert_eq!(read(&text), wanted, "what we know is as we want it");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["speed"]["of"], 9);
        assert_eq!([&value["ports"][0]["queues"], &value["ports"][1]["queues"]], [2, 4]);
        assert_eq!(value["ports"][1]["rules"]["colour"], "red");
    }

    #[test]
    fn a_port_that_is_gone_leaves_nothing_to_the_next() {
        let (mut wanted, mut kept) = (read(&newer()), Kept::of(&newer()));
        let first = wanted.ports.remove(0);
        let _ = kept.rewritten(&wanted);
        wanted.put(first);
        assert!(!kept.rewritten(&wanted).contains("red"));
        assert!(kept.unknown(&wanted).contains("ports.queues"), "the other's is still there");
    }

    #[test]
    fn a_format_that_is_not_known_is_left_alone() {
        let newer = newer().replace("\"format\":1", "\"format\":2");
        let Err(Unreadable::Newer(head)) = Wanted::read(&newer) else { panic!("{newer}") };
        assert_eq!((head.format, head.name.as_str()), (2, "sw1"));
        assert_eq!(Wanted::read("{}"), Err(Unreadable::Malformed));
    }
}
