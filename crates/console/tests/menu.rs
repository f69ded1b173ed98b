//! The vMP menu: every screen word by word, and no line that confuses it.

use hpvm_console::door::{Drive, DriveAddress};
use hpvm_console::menu::{Action, Menu, PowerVerb};
use proptest::prelude::*;

const MAIN_MENU: &str = "
   vMP MAIN MENU

         CO: Console
         CM: Command Menu
         HE: Main Help Menu
         X: Exit Connection

";

/// What is printed for these lines, the last one's answer alone; `<…>` stands for what is not text.
fn answer(lines: &[&str]) -> String {
    let mut menu = Menu::new("web1");
    let mut actions = menu.open();
    for line in lines {
        actions = menu.feed(line);
    }
    shown(&actions)
}

fn shown(actions: &[Action]) -> String {
    let shown = actions.iter().map(|action| match action {
        Action::Print(text) | Action::Chat(text) | Action::AskLine(text) => text.clone(),
        Action::ShowPower => "<power>\n".into(),
        Action::EnterConsole => "<console>".into(),
        Action::Power(verb) => format!("<pc {verb}>"),
        Action::LookAtDrives => "<drives>".into(),
        Action::Medium(request) => format!("<medium {request:?}>"),
        Action::GiveBack(drive) => format!("<give back {drive}>"),
        Action::Fail(why) => format!("<{why}>"),
        Action::Exit => "<exit>".into(),
    });
    shown.collect()
}

#[track_caller]
fn check(lines: &[&str], expected: &str) {
    assert_eq!(answer(lines), expected, "{lines:?}");
}

#[test]
fn main_menu() {
    check(&[], &format!("{MAIN_MENU}[web1] vMP> "));
    check(&["co"], "<console>");
    check(&["  Co  "], "<console>");
    check(&["x"], "<exit>");
    check(&[""], "[web1] vMP> ");
    check(&["cm"], &format!("{COMMAND_MENU}[web1] vMP:CM> "));
    check(&["cm", "co"], "<console>");
    check(&["cm", "x"], "<exit>");
}

const COMMAND_MENU: &str = "
       (Use Ctrl-B to return to vMP main menu.)

         PC: Power Control
         IN: Insert Medium
         EJ: Eject Medium
         HE: Help
         X: Exit Connection

";

#[test]
fn power_works_in_both_menus_and_in_either_case() {
    check(&["pc -on"], "<pc on>[web1] vMP> ");
    check(&["PC -OFF"], "<pc off>[web1] vMP> ");
    check(&["cm", "Pc -Cycle"], "<pc cycle>[web1] vMP:CM> ");
}

#[test]
fn power_dialogue() {
    check(
        &["pc"],
        "
<power>

         ON    - Switch the guest on
         OFF   - Switch it off at once, as if its plug were pulled
         CYCLE - Off, then on again
         Q     - Quit, change nothing

   ON, OFF, CYCLE or Q: ",
    );
    check(
        &["pc", "off"],
        "
   Guest 'web1' will be switched off at once, as if unplugged.
   Confirm? (y/[n]): ",
    );
    check(
        &["pc", "-cycle"],
        "
   Guest 'web1' will be switched off at once, as if unplugged, and on again.
   Confirm? (y/[n]): ",
    );
    check(&["pc", "maybe"], "   ON, OFF, CYCLE or Q: ");
    check(&["pc", "off", "Y"], "<pc off>[web1] vMP> ");
    check(&["cm", "pc", "on", "yes"], "<pc on>[web1] vMP:CM> ");
    for way in [&["pc", "q"][..], &["pc", ""], &["pc", "off", ""], &["pc", "off", "no"]] {
        check(way, "   Nothing was changed.\n\n[web1] vMP> ");
    }
}

/// A drive of the VM Host is given back whole, once it was ejected, and takes no image.
#[test]
fn a_drive_of_the_vm_host_is_given_back() {
    let answer = |line: &str, medium: Option<&str>| {
        let mut menu = Menu::new("web1");
        menu.feed(line);
        shown(&menu.drives(Ok(vec![Drive {
            address: DriveAddress { bus: 0, device: 1, target: 0 },
            medium: medium.map(str::to_owned),
            folder: None,
            trouble: None,
            images: Vec::new(),
        }])))
    };
    assert_eq!(answer("in", None), "<give back 0,1,0>[web1] vMP> ");
    for (line, medium) in [("in -filedvd sr0", None), ("in", Some("/dev/sr0"))] {
        let said = answer(line, medium);
        assert!(said.starts_with("<the drive at 0,1,0 is the VM Host's own"), "{said}");
    }
}

/// Whatever the files are called, one can leave with nothing done, and have each by its number.
#[test]
fn a_file_called_q_does_not_take_the_place_of_quitting() {
    let answer = |line: &str| {
        let mut menu = Menu::new("web1");
        menu.feed("in");
        menu.drives(Ok(vec![Drive {
            address: DriveAddress { bus: 0, device: 1, target: 0 },
            medium: None,
            folder: Some("/isos".into()),
            trouble: None,
            images: ["q", "Q", "quit", "1", "a.iso"].map(str::to_owned).to_vec(),
        }]));
        shown(&menu.feed(line))
    };
    for quits in ["q", "Q", "quit", ""] {
        assert_eq!(answer(quits), "   Nothing was changed.\n\n[web1] vMP> ", "{quits:?}");
    }
    for (line, image) in [("1", "q"), ("2", "Q"), ("3", "quit"), ("4", "1"), ("a.iso", "a.iso")] {
        let said = answer(line);
        assert!(said.contains(&format!("image: Some({image:?})")), "{said}");
    }
}

#[test]
fn what_is_no_command_is_said_with_what_there_is() {
    check(
        &["vm"],
        "\n   'vm' is no vMP command here; there are CO, CM, PC, IN, EJ, HE, X.\n\n[web1] vMP> ",
    );
    check(
        &["cm", "pc -graceful"],
        "\n   PC does not know '-graceful'; give one of -on, -off, -cycle, or nothing to be asked.\n\n[web1] vMP:CM> ",
    );
    check(
        &["pc on"],
        "\n   PC does not know 'on'; give one of -on, -off, -cycle, or nothing to be asked.\n\n[web1] vMP> ",
    );
    check(&["co now"], "\n   CO takes no argument, but 'now' was given.\n\n[web1] vMP> ");
    check(
        &["he", "vm"],
        "\n   There is no help on 'vm'; LI lists what there is.\n\n[web1] vMP:HE> ",
    );
    let long = "x".repeat(100);
    let answer = answer(&[&long]);
    assert!(answer.contains(&format!("'{}…'", "x".repeat(40))), "{answer}");
}

#[test]
fn ctrl_b_leads_to_the_main_menu_from_everywhere() {
    for way in [&["cm"][..], &["he"], &["cm", "he"], &["pc"], &["cm", "pc", "off"], &[]] {
        let mut menu = Menu::new("web1");
        for line in way {
            let _ = menu.feed(line);
        }
        assert_eq!(shown(&menu.resume()), format!("{MAIN_MENU}[web1] vMP> "), "{way:?}");
        assert!(menu.awaits_command());
    }
}

const SCREEN: &str = "
   vMP HELP

         OVerview  - What the virtual console is, and how to get about
         LIst      - The commands, one a line
         <COMMAND> - Help on this command
         TOPics    - Show all vMP Help topics and commands
         HElp      - Display this screen
         Q         - Quit help

";

const OVERVIEW: &str = "
   OVerview

   The virtual console is to a guest what the management processor is to a
   server: it shows the guest's serial console and switches its power,
   whether the guest is on or off.

   CO leads from the menu to the guest's console, Ctrl-B leads back. Ctrl-B
   never stops anything, neither the guest nor a start that is under way.
   To detach, type Ctrl-B and then X; the guest runs on.

   Several users may look at one console; one of them types. While somebody
   else holds the keyboard, the keys Ctrl-E c f take it over.

";

const LIST: &str = "
   LIst of the vMP commands

         CO  - Console: see the guest's console and type on it
         CM  - Command Menu: the commands that act on the guest
         PC  - Power Control: switch the guest on or off
         IN  - Insert: put another medium into the guest's virtual DVD drive
         EJ  - Eject: take the medium out of the guest's virtual DVD drive
         HE  - Help: this help; HE <COMMAND> shows the help on one command
         X   - Exit: end this session; the guest runs on

";

const COMMANDS: [(&str, &str); 7] = [
    (
        "CO",
        "
   CO - Console

   Shows what the guest printed last and connects to its console. Everything
   typed goes to the guest, but Ctrl-B, which returns to the main menu: that
   key itself cannot be sent. While the guest is off, CO waits until it is
   switched on.

",
    ),
    (
        "CM",
        "
   CM - Command Menu

   Leads to the commands that act on the guest: PC, IN and EJ. Ctrl-B
   returns to the main menu.

",
    ),
    (
        "PC",
        "
   PC - Power Control

         PC -on     Switch the guest on
         PC -off    Switch it off at once, as if its plug were pulled
         PC -cycle  Off, then on again
         PC         Show the power state, then ask

   With an option nothing is asked. To let the guest shut itself down, use
   hpvmstop -g on the VM Host. PC works in the main menu too.

",
    ),
    (
        "IN",
        "
   IN - Insert Medium

         IN                            Choose from the images there are
         IN -filedvd FILE              Put this image in
         … -pcipath BUS DEV TGT        Of several drives, that one; before
                                       -filedvd FILE or behind it

   The images come from the folder that the VM Host's administrator gave the
   drive. The medium stays in the drive until it is taken out or changed,
   also when the guest restarts or is stopped and started.

   A drive of the VM Host itself takes no images: IN gives it back to the
   guest after EJ.

",
    ),
    (
        "EJ",
        "
   EJ - Eject Medium

         EJ                            Take the medium out
         EJ -pcipath BUS DEV TGT       Of several drives, from that one

   A guest that locked its drive is asked to let the medium go.

",
    ),
    (
        "HE",
        "
   HE - Help

         HE            Enter the help; Q leaves it
         HE <COMMAND>  Show the help on one command, or one topic

",
    ),
    (
        "X",
        "
   X - Exit Connection

   Ends this session. The guest runs on, and other sessions are not touched.

",
    ),
];

#[test]
fn help_screens() {
    let in_help = |line: &str, text: &str| check(&["he", line], &format!("{text}[web1] vMP:HE> "));
    check(&["he"], &format!("{SCREEN}[web1] vMP:HE> "));
    in_help("", "");
    for word in ["ov", "OVerview", "over"] {
        in_help(word, OVERVIEW);
    }
    for word in ["li", "LIST"] {
        in_help(word, LIST);
    }
    in_help("help", SCREEN);
    in_help("?", SCREEN);
    for (command, text) in COMMANDS {
        in_help(&command.to_lowercase(), text);
        check(&[&format!("he {command}")], &format!("{text}[web1] vMP> "));
    }
    // All topics with one empty line between them.
    let texts = COMMANDS.map(|(_, text)| text.trim_start_matches('\n')).concat();
    let topics = [OVERVIEW, LIST.trim_start_matches('\n'), &texts].concat();
    for word in ["top", "topics", "TOPics"] {
        in_help(word, &topics);
    }
    check(&["he", "q"], "[web1] vMP> ");
    check(&["cm", "help", "quit"], "[web1] vMP:CM> ");
    check(&["cm", "?", "q", "pc -on"], "<pc on>[web1] vMP:CM> ");
}

#[test]
fn screens_fit_a_terminal() {
    for lines in [&["he"][..], &["he", "top"], &["pc"], &["cm"], &["pc", "cycle"], &["vm"]] {
        let answer = answer(lines);
        let longest = answer.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(79), "{longest:?} in {answer}");
    }
}

proptest! {
    /// Every answer ends by asking, entering the console or leaving, and verbs are performed only when they were typed.
    #[test]
    fn no_line_confuses_the_menu(
        lines in prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec![
                    "co", "cm", "pc", "he", "x", "q", "on", "off", "cycle", "y", "n", "", "pc -on", "pc -off", "top", "in", "ej",
                ]).prop_map(String::from),
                "\\PC{0,20}",
                ".{0,20}",
            ],
            0..30,
        ),
    ) {
        let mut menu = Menu::new("web1");
        for line in &lines {
            let actions = menu.feed(line);
            let (last, others) = actions.split_last().expect("an answer");
            let is_last =
                |action: &Action| matches!(action, Action::AskLine(_)
                        | Action::EnterConsole
                        | Action::LookAtDrives
                        | Action::Exit);
            prop_assert!(is_last(last), "{last:?} after {line:?}");
            prop_assert!(!others.iter().any(is_last));
            let powers: Vec<&Action> =
                others.iter().filter(|action| matches!(action, Action::Power(_))).collect();
            if let [power] = powers[..] {
                let confirmed = matches!(line.trim().to_lowercase().as_str(), "y" | "yes");
                let named = [PowerVerb::On, PowerVerb::Off, PowerVerb::Cycle]
                    .iter()
                    .any(|verb| line.to_lowercase().contains(&format!("-{verb}")));
                prop_assert!(confirmed || named, "{power:?} by {line:?}");
            }
        }
    }
}
