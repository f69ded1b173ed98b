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
        "cl\n\n   'cl' is no vMP command here; there are CO, CM, PC, HE, X.\n\n"
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
