//! Guests that boot over their NICs, on real firmware: by the profile of their port, and by DHCP. In a network of the test's
//! own, with the servers that such a network has.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hpvm_netlab::{apart, ip, wait_until_up};
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::networks::SOUND;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_missing_driver_is_told_of,
    ; long:
    firmware_boots_as_its_port_says,
];

/// A boot program runs after ten seconds, of which the firmware's own start takes most.
const BOOT_BOUND: Duration = Duration::from_secs(60);
const BOUND: Duration = Duration::from_secs(20);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// What DHCP gives away.
const LEASED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
const LEASED_FILE: &str = "of-dhcp.efi";

fn firmware_boots_as_its_port_says() {
    apart(boot);
}

/// Settles 110: a static address, a server and a file are what the firmware uses, and nobody on the LAN is asked for others;
/// NICs of both kinds, of a guest without disks and of one whose disk has nothing to boot.
fn boot() {
    ip("link add wire0 type veth peer name far0");
    ip(&format!("address add {SERVER}/24 dev far0"));
    ip("link set far0 up");
    ip("link set wire0 up");
    ip("route add 255.255.255.255 dev far0");
    wait_until_up("wire0");
    let servers = Servers::start();
    let host = VmHost::new(Engine::Real);
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "-n", "wire0"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    for (port, address, file) in [(1, "192.0.2.11", "of-avio.efi"), (2, "192.0.2.12", "of-lan.efi")]
    {
        let rule = format!("portid:{port}:lanboot:{address}/24,server={SERVER},file={file}");
        host.ok(&["hpvmnet", "-S", "sw1", "-u", &rule]);
    }
    host.create("avio", "512M", &["network:avio_lan:0,1:vswitch:sw1:portid:1"]);
    let disk = disk_at("0,0,0", &host.disk("empty", 1 << 20));
    host.create("lan", "512M", &[&disk, "network:lan:0,1:vswitch:sw1:portid:2"]);
    for name in ["avio", "lan"] {
        host.ok(&["hpvmstart", "-P", name]);
    }
    for (number, file) in [(1, "of-avio.efi"), (2, "of-lan.efi")] {
        Console::attach(&host.run_dir(number)).expect(&says(file), BOOT_BOUND);
    }
    let served = servers.served();
    assert_eq!(servers.leases(), 0, "the firmware asked the LAN: {served:?}");
    for (address, file) in [("192.0.2.11", "of-avio.efi"), ("192.0.2.12", "of-lan.efi")] {
        assert!(served.contains(&(address.parse().expect("one"), file.into())), "{served:?}");
    }

    // Who has it from DHCP is told by whoever answers there.
    host.ok(&["hpvmstop", "-P", "avio", "-h", "-F"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-u", "portid:1:lanboot:dhcp"]);
    host.ok(&["hpvmstart", "-P", "avio"]);
    Console::attach_from_now(&host.run_dir(1)).expect(&says(LEASED_FILE), BOOT_BOUND);
    assert!(servers.served().contains(&(LEASED, LEASED_FILE.into())), "{:?}", servers.served());

    for name in ["avio", "lan"] {
        host.ok(&["hpvmstop", "-P", name, "-h", "-F"]);
    }
    wait_until(BOUND, "nothing runs", || host.processes().is_empty());
}

/// The guest starts and boots from what else it has; with the driver, and without the rule, nothing is said.
fn a_missing_driver_is_told_of() {
    let mut host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    host.create("one", "512M", &["network:lan:0,1:vswitch:sw1:portid:3"]);
    host.set("HPVMLANROM", "/nowhere/e1000.rom");
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
    let profile = "192.0.2.11/24,server=192.0.2.1,file=a.efi";
    host.ok(&["hpvmnet", "-S", "sw1", "-u", &format!("portid:3:lanboot:{profile}")]);
    let shown = host.ok(&["hpvmnet", "-S", "sw1", "-p", "3"]);
    assert!(shown.contains(&format!("    Boots over LAN               : {profile}\n")), "{shown}");
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.stdout.contains("install package ipxe-qemu or set HPVMLANROM"), "{doctor}");
    let started = host.run(&["hpvmstart", "-P", "one"]);
    let warning = "Warning 1 on item /nowhere/e1000.rom: the guest cannot boot over its lan NIC";
    assert!(started.status.success() && started.stderr.contains(warning), "{started}");
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-u", "portid:3:lanboot:none"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
    let quiet = host.run(&["hpvmstart", "-P", "one"]);
    assert!(quiet.status.success() && !quiet.stderr.contains("Warning"), "{quiet}");
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
    wait_until(BOUND, "nothing runs", || host.processes().is_empty());
}

fn says(file: &str) -> String {
    format!("booted from {file}")
}

/// Servers for TFTP and DHCP, for as long as the test runs.
struct Servers {
    served: Arc<Mutex<Vec<(Ipv4Addr, String)>>>,
    leases: Arc<Mutex<usize>>,
}

impl Servers {
    fn start() -> Servers {
        let servers = Servers { served: Arc::default(), leases: Arc::default() };
        let tftp = UdpSocket::bind((SERVER, 69)).expect("TFTP's port");
        let served = Arc::clone(&servers.served);
        thread::spawn(move || {
            let mut request = [0; 1024];
            while let Ok((count, SocketAddr::V4(from))) = tftp.recv_from(&mut request) {
                let Some(asked) = Asked::read(&request[..count]) else { continue };
                served.lock().expect("whole").push((*from.ip(), asked.file.clone()));
                thread::spawn(move || send(from.into(), &asked));
            }
        });
        let dhcp = UdpSocket::bind(("0.0.0.0", 67)).expect("DHCP's port");
        dhcp.set_broadcast(true).expect("a socket");
        let leases = Arc::clone(&servers.leases);
        thread::spawn(move || {
            let mut question = [0; 2048];
            while let Ok((count, _)) = dhcp.recv_from(&mut question) {
                *leases.lock().expect("whole") += 1;
                // Who asks what this server does not have hears nothing.
                if let Some(answer) = lease(&question[..count]) {
                    let _ = dhcp.send_to(&answer, (Ipv4Addr::BROADCAST, 68));
                }
            }
        });
        servers
    }

    /// Who asked for which file, by TFTP.
    fn served(&self) -> Vec<(Ipv4Addr, String)> {
        self.served.lock().expect("whole").clone()
    }

    /// How many questions there were by DHCP.
    fn leases(&self) -> usize {
        *self.leases.lock().expect("whole")
    }
}

/// A request for a file (RFC 1350, 5; RFC 2349).
struct Asked {
    file: String,
    wants_size: bool,
}

impl Asked {
    fn read(request: &[u8]) -> Option<Asked> {
        let words = request.strip_prefix(&[0, 1])?.split(|byte| *byte == 0);
        let words: Vec<String> = words.map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        let wants_size = words.iter().any(|word| word == "tsize");
        Some(Asked { file: words.first()?.clone(), wants_size })
    }
}

/// Sends a file in blocks of 512 bytes, each until it is acknowledged, or the client has gone.
fn send(to: SocketAddr, asked: &Asked) {
    const TRIES: usize = 5;
    let socket = UdpSocket::bind((SERVER, 0)).expect("a port");
    socket.connect(to).expect("a client");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
    let program = boot_program(&says(&asked.file));
    let mut messages = Vec::new();
    if asked.wants_size {
        messages.push([b"\0\x06tsize\0", program.len().to_string().as_bytes(), b"\0"].concat());
    }
    // A block that is not full ends the file.
    let ends = program.len().is_multiple_of(512);
    let blocks = program.chunks(512).chain(ends.then_some(&[][..]));
    messages.extend(
        (1_u16..)
            .zip(blocks)
            .map(|(number, block)| [&[0, 3][..], &number.to_be_bytes(), block].concat()),
    );
    for message in messages {
        let number = if message[1] == 6 { [0, 0] } else { [message[2], message[3]] };
        let acknowledged = (0..TRIES).any(|_| {
            let mut answer = [0; 512];
            let sent = socket.send(&message).is_ok();
            sent && socket
                .recv(&mut answer)
                .is_ok_and(|_| answer[..4] == [0, 4, number[0], number[1]])
        });
        if !acknowledged {
            return;
        }
    }
}

/// What DHCP answers to firmware (RFC 2131).
fn lease(question: &[u8]) -> Option<Vec<u8>> {
    let (head, options) = question.split_at_checked(240)?;
    let firmware = options.windows(9).any(|window| window == b"PXEClient");
    let kind = options.windows(3).find(|window| window.starts_with(&[53, 1]))?[2];
    // An offer to who looks for a server, the lease to who wants it.
    let answered = match kind {
        1 => 2,
        3 => 5,
        _ => return None,
    };
    let mut answer = vec![0; 240];
    answer[..3].copy_from_slice(&[2, 1, 6]);
    answer[4..12].copy_from_slice(&head[4..12]);
    answer[16..20].copy_from_slice(&LEASED.octets());
    answer[20..24].copy_from_slice(&SERVER.octets());
    answer[28..44].copy_from_slice(&head[28..44]);
    answer[108..108 + LEASED_FILE.len()].copy_from_slice(LEASED_FILE.as_bytes());
    answer[236..240].copy_from_slice(&head[236..240]);
    answer.extend([53, 1, answered, 54, 4]);
    answer.extend(SERVER.octets());
    answer.extend([51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 255, 0, 255]);
    answer.resize(300, 0);
    firmware.then_some(answer)
}

/// An EFI program (PE32+, one section) that prints a text by the firmware's console and waits for ever.
fn boot_program(text: &str) -> Vec<u8> {
    const PAGE: u32 = 0x1000;
    const FILE_ALIGNMENT: u32 = 512;
    // Entered with the system table in rdx, of which offset 64 is the console; its second function prints what rdx tells.
    let mut section = vec![0x48, 0x83, 0xec, 0x28, 0x48, 0x8b, 0x4a, 0x40];
    section.extend([0x48, 0x8d, 0x15, 6, 0, 0, 0]); // lea rdx, [the text]
    section.extend([0xff, 0x51, 0x08, 0xf4, 0xeb, 0xfd]); // call [rcx+8]; again: hlt; jmp again
    section.extend(text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
    let used = section.len() as u32;
    section.resize(used.next_multiple_of(FILE_ALIGNMENT) as usize, 0);
    let size = section.len() as u32;
    let mut file = b"MZ".to_vec();
    file.resize(60, 0);
    let half =
        |file: &mut Vec<u8>, words: &[u16]| file.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    let full =
        |file: &mut Vec<u8>, words: &[u32]| file.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    full(&mut file, &[64]);
    file.extend(b"PE\0\0");
    half(&mut file, &[0x8664, 1]);
    full(&mut file, &[0, 0, 0]);
    half(&mut file, &[240, 0x22e, 0x20b, 0]);
    full(&mut file, &[size, 0, 0, PAGE, PAGE, 0x40_0000, 0, PAGE, FILE_ALIGNMENT]);
    file.extend([0; 16]);
    full(&mut file, &[2 * PAGE, FILE_ALIGNMENT, 0]);
    // The subsystem of applications of EFI.
    half(&mut file, &[10, 0]);
    file.extend([0; 36]);
    full(&mut file, &[16]);
    file.extend([0; 16 * 8]);
    file.extend(b".text\0\0\0");
    full(&mut file, &[used, PAGE, size, FILE_ALIGNMENT, 0, 0, 0, 0x6000_0020]);
    file.resize(FILE_ALIGNMENT as usize, 0);
    file.extend(section);
    file
}
