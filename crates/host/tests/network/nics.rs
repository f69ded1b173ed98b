//! What is told of interfaces, and when.

use std::time::{Duration, Instant};

use hpvm_host::nic::{self, Carrier, LinkNews, LinkWatch, Nic, NicKind, Unfit};
use hpvm_netlab::{ip, pair};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn named(name: &str) -> Nic {
    nic::named(name).expect("told").unwrap_or_else(|| panic!("no {name}"))
}

pub(crate) fn listed() {
    pair("seen0", "seen1");
    ip("address add 192.0.2.7/24 dev seen0");
    ip("link set seen0 mtu 9000");
    ip("link add seenbr type bridge");
    ip("link set seen1 master seenbr");
    ip("tuntap add seentap mode tap");
    let seen = named("seen0");
    assert_eq!((&seen.kind, seen.mtu_bytes, seen.carrier), (&NicKind::Veth, 9000, Carrier::Up));
    assert!(seen.addresses.contains(&("192.0.2.7".parse().expect("an address"), 24)));
    assert!(seen.addresses.iter().any(|(address, _)| address.is_ipv6()));
    assert_eq!(seen.fit_for_wire(), Ok(()));
    let part = Unfit::Part("seen1".to_owned(), "seenbr".to_owned());
    assert_eq!(named("seen1").fit_for_wire(), Err(part));
    assert_eq!(named("seenbr").kind, NicKind::Bridge);
    assert_eq!((named("seentap").kind, named("seentap").carrier), (NicKind::Tap, Carrier::Off));
    assert!(matches!(named("seentap").fit_for_wire(), Err(Unfit::Tap(_))));
    assert!(matches!(named("lo").fit_for_wire(), Err(Unfit::Loopback(_))));
    assert_eq!(nic::named("none such").expect("told"), None);
}

/// A link that goes, comes and changes is told without asking.
pub(crate) fn followed() {
    pair("held0", "held1");
    let index = named("held0").index;
    let watch = LinkWatch::new().expect("events");
    watch.ask_for_all().expect("asked");
    until(&watch, "how it is", |news| is(news, "held0", |nic| nic.carrier == Carrier::Up));
    ip("link set held1 down");
    until(&watch, "no link", |news| is(news, "held0", |nic| nic.carrier == Carrier::Down));
    ip("link set held1 up");
    until(&watch, "a link", |news| is(news, "held0", |nic| nic.carrier == Carrier::Up));
    ip("link set held0 mtu 4000");
    until(&watch, "its MTU", |news| is(news, "held0", |nic| nic.mtu_bytes == 4000));
    ip("link del held0");
    let gone = LinkNews::Gone { index, name: "held0".to_owned() };
    until(&watch, "its end", |news| *news == gone);
}

fn is(news: &LinkNews, name: &str, what: impl Fn(&Nic) -> bool) -> bool {
    matches!(news, LinkNews::Now(nic) if nic.name == name && what(nic))
}

fn until(watch: &LinkWatch, what: &str, found: impl Fn(&LinkNews) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !watch.read().expect("events").iter().any(&found) {
        let rest = deadline.saturating_duration_since(Instant::now());
        assert!(!rest.is_zero(), "never told: {what}");
        let rest = Timespec::try_from(rest).expect("a time");
        poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&rest)).expect("polled");
    }
}
