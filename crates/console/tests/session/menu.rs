//! The menu on a terminal, word by word.

use libtest_mimic::Trial;

use crate::rig::Rig;
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("menu_as_a_first_time_user_sees_it", menu_as_a_first_time_user_sees_it),
        trial("menu_power_dialogue", menu_power_dialogue),
        trial("menu_ctrl_b_leads_to_the_main_menu_from_everywhere", ctrl_b_from_everywhere),
        trial("menu_tells_why_a_verb_failed", tells_why_a_verb_failed),
        trial(
            "menu_tells_what_a_verb_reports_before_its_outcome",
            tells_what_a_verb_reports_before_its_outcome,
        ),
        trial("menu_asks_which_drive_and_which_image", asks_which_drive_and_image),
        trial("menu_media_by_one_command", media_by_one_command),
        trial("menu_ends_with_the_input", ends_with_the_input),
    ]
}

const MAIN_MENU: &str = "
   vMP MAIN MENU

         CO: Console
         CM: Command Menu
         HE: Main Help Menu
         X: Exit Connection

[web1] vMP> ";

fn menu_as_a_first_time_user_sees_it() {
    let rig = Rig::off();
    let mut session = rig.on_terminal(&[]);
    assert_eq!(session.shows("[web1] vMP> ") + "[web1] vMP> ", MAIN_MENU);
    session.types(b"cl\r");
    assert_eq!(
        session.shows("[web1] vMP> "),
        "cl\n\n   'cl' is no vMP command here; there are CO, CM, PC, IN, EJ, HE, X.\n\n"
    );
    session.types(b"He\r");
    assert_eq!(
        session.shows("[web1] vMP:HE> "),
        "He

   vMP HELP

         OVerview  - What the virtual console is, and how to get about
         LIst      - The commands, one a line
         <COMMAND> - Help on this command
         TOPics    - Show all vMP Help topics and commands
         HElp      - Display this screen
         Q         - Quit help

"
    );
    session.types(b"li\r");
    assert_eq!(
        session.shows("[web1] vMP:HE> "),
        "li

   LIst of the vMP commands

         CO  - Console: see the guest's console and type on it
         CM  - Command Menu: the commands that act on the guest
         PC  - Power Control: switch the guest on or off
         IN  - Insert: put another medium into the guest's virtual DVD drive
         EJ  - Eject: take the medium out of the guest's virtual DVD drive
         HE  - Help: this help; HE <COMMAND> shows the help on one command
         X   - Exit: end this session; the guest runs on

"
    );
    session.types(b"q\r");
    session.shows("[web1] vMP> ");
    session.types(b"cm\r");
    assert_eq!(
        session.shows("[web1] vMP:CM> "),
        "cm

       (Use Ctrl-B to return to vMP main menu.)

         PC: Power Control
         IN: Insert Medium
         EJ: Eject Medium
         HE: Help
         X: Exit Connection

"
    );
    session.types(b"x\r");
    session.ends_with(0);
    assert_eq!(session.rest(), "x\n");
}

fn menu_power_dialogue() {
    let rig = Rig::off();
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"pc\r");
    assert_eq!(
        session.shows("ON, OFF, CYCLE or Q: "),
        "pc

   Power of guest 'web1': Off

         ON    - Switch the guest on
         OFF   - Switch it off at once, as if its plug were pulled
         CYCLE - Off, then on again
         Q     - Quit, change nothing

   "
    );
    session.types(b"on\r");
    assert_eq!(
        session.shows("(y/[n]): "),
        "on\n\n   Guest 'web1' will be switched on.\n   Confirm? "
    );
    session.types(b"\r");
    assert_eq!(session.shows("[web1] vMP> "), "\n   Nothing was changed.\n\n");
    session.types(b"pc\ron\ry\r");
    session.shows("   Guest 'web1' is on.\n\n[web1] vMP> ");
    session.types(b"cm\rPC -OFF\r");
    session.shows("   Guest 'web1' is off.\n\n[web1] vMP:CM> ");
    session.types(b"pc -cycle\r");
    session.shows("[web1] vMP:CM> ");
    assert_eq!(rig.verbs(), "on\ndone\noff\ndone\ncycle\ndone\n");
    session.types(b"x\r");
    session.ends_with(0);
}

fn ctrl_b_from_everywhere() {
    let rig = Rig::off();
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    for (way, prompt) in [
        (&b"cm\r"[..], "vMP:CM> "),
        (b"he\r", "vMP:HE> "),
        (b"pc\r", "CYCLE or Q: "),
        (b"pc\roff\r", "(y/[n]): "),
        (b"pc -of", "pc -of"),
    ] {
        session.types(way);
        session.shows(prompt);
        session.types(b"\x02");
        session.shows("^B\n\n   vMP MAIN MENU\n");
        session.shows("[web1] vMP> ");
    }
    assert_eq!(rig.verbs(), "");
    session.types(b"\r");
    assert_eq!(session.shows("[web1] vMP> "), "\n", "an empty line asks again");
    session.types(b"x\r");
    session.ends_with(0);
}

fn tells_why_a_verb_failed() {
    let rig = Rig::off();
    rig.put("refuse", "only root and the owner of this VM Host may do that");
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"pc -on\r");
    session
        .shows("   PC failed: only root and the owner of this VM Host may do that\n\n[web1] vMP> ");
    session.types(b"x\r");
    session.ends_with(0);
}

fn tells_what_a_verb_reports_before_its_outcome() {
    let rig = Rig::off();
    rig.put("report", "what is wrong:\n    this and that\n");
    let report = "\n   what is wrong:\n       this and that\n";
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"pc -on\r");
    session.shows(&format!("{report}   Guest 'web1' is on.\n\n[web1] vMP> "));
    rig.put("refuse", "the guest cannot start");
    session.types(b"pc -on\r");
    session.shows(&format!("{report}   PC failed: the guest cannot start\n\n[web1] vMP> "));
    session.types(b"x\r");
    session.ends_with(0);
}

fn ends_with_the_input() {
    let rig = Rig::off();
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"\x04");
    session.ends_with(0);
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"pc\r");
    session.shows("or Q: ");
    session.types(b"\x04");
    session.ends_with(1);
    session.shows("nothing was changed");
}

fn asks_which_drive_and_image() {
    let (rig, _door) = Rig::on(b"");
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"cm\rin\r");
    session.shows("HE: Help");
    session.shows("[web1] vMP:CM> ");
    assert_eq!(
        session.shows("1 to 2, or Q: "),
        "
         1  drive 0,4,0: /isos/first.iso
         2  drive 0,4,1: empty

   Which drive? "
    );
    session.types(b"3\r");
    session.shows("   '3' is none of 1 to 2; Q changes nothing.\n");
    session.shows("Which drive? 1 to 2, or Q: ");
    session.types(b"2\r");
    session.shows("2\n");
    assert_eq!(
        session.shows("1 to 2, or Q: "),
        "
   Images for the drive at 0,4,1, from /isos:

         1  first.iso
         2  second disc.iso

   Which image? "
    );
    session.types(b"2\r");
    session.shows("   The drive at 0,4,1 has second disc.iso.\n\n[web1] vMP:CM> ");
    session.types(b"ej -pcipath 0 4 1\r");
    session.shows("   The drive at 0,4,1 is empty already.\n\n[web1] vMP:CM> ");
    session.types(b"EJ -pcipath 0,4,0\r");
    session.shows("   The drive at 0,4,0 is empty.\n\n[web1] vMP:CM> ");
    session.types(b"in\rq\r");
    session.shows("Nothing was changed.");
    session.shows("vMP:CM> ");
    session.types(b"in -pcipath 0 4 0 -filedvd none.iso\r");
    session.shows("   There is no 'none.iso' in the folder of images.\n\n[web1] vMP:CM> ");
    session.types(b"ej -pcipath 0 9 0\r");
    session.shows("   The guest has no drive at 0,9,0.\n\n[web1] vMP:CM> ");
    session.types(b"in -iso x\r");
    session.shows("'-iso' is no option here; there are -pcipath");
    session.shows("vMP:CM> ");
    session.types(b"x\r");
    session.ends_with(0);
}

fn media_by_one_command() {
    let (rig, _door) = Rig::on(b"");
    let said = |command: &str, input: &[u8]| {
        let output = rig.with_input(&["--command", command, "--quiet"], input);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let done = |text: &str| (Some(0), text.to_owned());
    assert_eq!(said("ej -pcipath 0 4 0", b""), done("the drive at 0,4,0 is empty\n"));
    let put_in = "in -pcipath 0 4 1 -filedvd second disc.iso";
    assert_eq!(said(put_in, b""), done("the drive at 0,4,1 has second disc.iso\n"));
    for address in ["0 4 1", "0,4,1"] {
        let put_in = format!("in -filedvd second disc.iso -pcipath {address}");
        assert_eq!(said(&put_in, b""), done("the drive at 0,4,1 has second disc.iso\n"));
    }
    assert_eq!(said("in -pcipath 0 4 0 -filedvd none.iso", b"").0, Some(1));
    assert_eq!(said("ej -pcipath 0 9 0", b"").0, Some(1));
    assert_eq!(said("ej", b"").0, Some(1), "which of the two was not answered");
    let (status, text) = said("ej", b"1\n");
    assert_eq!(status, Some(0));
    assert!(text.ends_with("the drive at 0,4,0 is empty\n"), "{text}");
    assert_eq!(said("ej -pcipath 0 4", b"").0, Some(2));
    let off = Rig::off();
    let output = off.with_input(&["--command", "ej"], b"");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("-m dvd:ADAPTER:BUS,DEVICE,TARGET:file:IMAGE` changes the medium"),
        "{said}"
    );
}
