//! Without a terminal: pipes, `-c` and `-q`, and their exit status.

use std::io::{Read, Write};
use std::process::Output;

use libtest_mimic::Trial;

use crate::rig::{Rig, wait_until};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("script_lines_drive_the_menu", lines_drive_the_menu),
        trial("script_types_on_the_console", types_on_the_console),
        trial("script_watches_until_its_input_ends", watches_until_its_input_ends),
        trial("script_runs_one_command", runs_one_command),
        trial("script_answers_the_dialogue", answers_the_dialogue),
        trial("script_of_nonsense_harms_nothing", nonsense_harms_nothing),
        trial("script_with_a_closed_output_ends", closed_output_ends),
    ]
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn lines_drive_the_menu() {
    let rig = Rig::off();
    let (status, shown, errors) = text(&rig.with_input(&[], b"PC -on\r\ncm\nhe x\n\x02x"));
    assert_eq!((status, errors.as_str()), (Some(0), ""));
    assert!(shown.contains("[web1] vMP> \n   Guest 'web1' is on.\n\n[web1] vMP> "), "{shown}");
    assert!(shown.contains("[web1] vMP:CM> \n   X - Exit Connection\n"), "{shown}");
    assert!(shown.ends_with("         X: Exit Connection\n\n[web1] vMP> "), "{shown}");
    assert_eq!(rig.verbs(), "on\ndone\n");
    let (status, shown, _) = text(&rig.with_input(&["--quiet"], b"pc -off\n"));
    assert_eq!((status, shown.as_str()), (Some(0), "\n   Guest 'web1' is off.\n\n\n"));
}

fn types_on_the_console() {
    let (rig, door) = Rig::on(b"web1 login: ");
    let (status, shown, _) = text(&rig.with_input(&[], b"co\nroot\n\x02x\n"));
    assert_eq!(status, Some(0));
    assert!(shown.contains("web1 login: "), "{shown}");
    assert!(shown.matches("vMP MAIN MENU").count() == 2, "{shown}");
    wait_until("the guest got the keys", || door.typed() == b"root\n");
    let much: Vec<u8> = (0..1_000_000_u32).map(|place| b'a' + (place % 26) as u8).collect();
    let output = rig.with_input(&["--quiet", "--command", "co"], &much);
    assert_eq!(output.status.code(), Some(0));
    wait_until("all input got through", || door.typed().len() == 5 + much.len());
    assert!(door.typed().ends_with(&much));
}

fn watches_until_its_input_ends() {
    let (rig, door) = Rig::on(b"before\r\n");
    let mut process = rig.on_pipes(&["--quiet", "--command", "co"]);
    wait_until("the session is there", || door.sessions() == 1);
    let lines: String = (0..2000).map(|number| format!("line {number}\r\n")).collect();
    let mut all = b"before\r\n".to_vec();
    for part in lines.as_bytes().chunks(1000) {
        door.prints(part);
        all.extend(part);
        let mut part = vec![0; part.len() + if all.len() < 1010 { 8 } else { 0 }];
        process.0.stdout.as_mut().expect("pipe").read_exact(&mut part).expect("output");
        assert!(all.ends_with(&part));
    }
    drop(process.0.stdin.take());
    assert_eq!(process.end().code(), Some(0));
}

fn runs_one_command() {
    let rig = Rig::off();
    let run = |command: &str| text(&rig.with_input(&["--quiet", "--command", command], b""));
    assert_eq!(run("pc -on"), (Some(0), "Guest 'web1' is on.\n".into(), String::new()));
    assert_eq!(run("PC -OFF"), (Some(0), "Guest 'web1' is off.\n".into(), String::new()));
    assert_eq!(run("pc -cycle").0, Some(0));
    assert_eq!(run("x"), (Some(0), String::new(), String::new()));
    assert_eq!(run(""), (Some(0), String::new(), String::new()));
    let (status, shown, _) = run("he pc");
    assert_eq!(status, Some(0));
    assert!(shown.starts_with("\n   PC - Power Control\n"), "{shown}");
    assert_eq!(run("he").0, Some(0));
    rig.put("refuse", "the guest is being stopped");
    assert_eq!(
        run("pc -off"),
        (Some(1), String::new(), "client: the guest is being stopped\n".into())
    );
    for (command, wrong) in [
        ("rec -view", "'rec' is no vMP command here; there are CO, CM, PC, IN, EJ, HE, X"),
        (
            "pc -graceful",
            "PC does not know '-graceful'; give one of -on, -off, -cycle, or nothing to be asked",
        ),
        ("pc -on -off", "PC with an option takes no argument, but '-off' was given"),
        ("co now", "CO takes no argument, but 'now' was given"),
        ("he cl", "there is no help on 'cl'; LI lists what there is"),
    ] {
        assert_eq!(
            run(command),
            (Some(2), String::new(), format!("client: {wrong}\n")),
            "{command}"
        );
    }
    rig.put("power", "off");
    let (status, shown, _) = run("co");
    assert_eq!(status, Some(0));
    assert!(shown.contains("Guest 'web1' is Off."), "{shown}");
}

fn answers_the_dialogue() {
    let rig = Rig::off();
    let ask = |input: &[u8]| text(&rig.with_input(&["--command", "pc"], input));
    let (status, _, why) = ask(b"");
    assert_eq!(status, Some(1));
    assert!(why.contains("nothing was changed"), "{why}");
    assert_eq!(ask(b"on\n").0, Some(1), "an end of the input is no confirmation");
    assert_eq!(ask(b"on\nn\n").0, Some(0));
    assert_eq!(rig.verbs(), "");
    assert_eq!(ask(b"on\ny\n").0, Some(0));
    assert_eq!(rig.verbs(), "on\ndone\n");
}

fn nonsense_harms_nothing() {
    let rig = Rig::off();
    let mut input = vec![b'x'; 100_000];
    input.extend(b"\nco\x1b]0;title\x07\n\xff\xfe\n");
    input.extend((0_u8..=255).filter(|byte| *byte != 0x02));
    let (status, shown, _) = text(&rig.with_input(&[], &input));
    assert_eq!(status, Some(0));
    assert!(shown.contains("The line is too long for a vMP command."), "{shown}");
    assert!(!shown.contains('\x1b'), "control bytes of the user came back: {shown:?}");
    assert_eq!(rig.verbs(), "");
}

fn closed_output_ends() {
    let rig = Rig::off();
    let mut process = rig.on_pipes(&[]);
    drop(process.0.stdout.take());
    let _ = process.0.stdin.as_mut().expect("pipe").write_all(b"he\n");
    assert_eq!(process.end().code(), Some(1));
}
