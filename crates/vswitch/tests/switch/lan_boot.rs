//! A port with a boot profile, and the firmware that asks for it, on both kinds of port.

use hpvm_model::{LanBoot, PortRules};

use crate::counting::{Datagrams, from_wire};
use crate::guest::Driver;
use crate::net::{BROADCAST, Net, frame, mac, open_rules};

fn rules() -> PortRules {
    let profile = "192.0.2.7/24,server=192.0.2.1,file=hpvm.efi".parse::<LanBoot>();
    PortRules { lan_boot: Some(profile.expect("a profile")), ..open_rules() }
}

/// DHCPDISCOVER of a client of a class (RFC 2131, RFC 2132). It is longer than what is looked at of every frame.
fn discover(number: u16, class: &[u8]) -> Vec<u8> {
    let mut question = frame(BROADCAST, mac(number), 14, 0);
    question[12..14].copy_from_slice(&[8, 0]);
    let mut message = [0; 236];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&mac(number));
    let options = [&[99, 130, 83, 99, 53, 1, 1, 60, class.len() as u8], class, &[255]].concat();
    let udp_bytes = (8 + message.len() + options.len()) as u16;
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(20 + udp_bytes).to_be_bytes());
    header[8..10].copy_from_slice(&[64, 17]);
    header[16..20].copy_from_slice(&[255; 4]);
    question.extend(header);
    question.extend([0, 68, 0, 67]);
    question.extend(udp_bytes.to_be_bytes());
    question.extend([0, 0]);
    question.extend(message);
    question.extend(options);
    question
}

#[test]
fn the_port_answers_its_firmware_and_nobody_else_hears_it() {
    let net = Net::new();
    let far = Datagrams::attach(&net);
    let mut avio = net.avio(1, rules(), Driver::LINUX);
    let mut vio = net.vio(2, rules());
    avio.send(&discover(1, b"PXEClient:Arch:00007"));
    vio.send(&discover(2, b"PXEClient:Arch:00007"));
    for (number, answer) in [(1, avio.receive().frame), (2, vio.receive())] {
        let message = &answer[42..];
        assert_eq!((message[0], &message[28..34]), (2, &mac(number)[..]));
        assert_eq!(message[16..24], [192, 0, 2, 7, 192, 0, 2, 1]);
        assert!(message[108..].starts_with(b"hpvm.efi\0"));
    }
    // What firmware asks of others is not passed on either; an operating system's question is.
    avio.send(&discover(1, b"HTTPClient:Arch:00016"));
    let of_system = discover(1, b"linux");
    avio.send(&of_system);
    assert_eq!(from_wire(&far).1, of_system);
    assert_eq!(vio.receive(), of_system);
    avio.wait_until_sent();
    assert_eq!(net.counters(1).out_other, 3);
}
