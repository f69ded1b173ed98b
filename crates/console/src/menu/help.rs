//! The texts of the menu: its two menus, the help screen and the topics behind it. One table holds the commands, so that
//! the list, the topics and the messages cannot disagree.

use super::{MenuError, quoted};

pub(super) const MAIN_MENU: &str = "
   vMP MAIN MENU

         CO: Console
         CM: Command Menu
         HE: Main Help Menu
         X: Exit Connection

";

pub(super) const COMMAND_MENU: &str = "
       (Use Ctrl-B to return to vMP main menu.)

         PC: Power Control
         IN: Insert Medium
         EJ: Eject Medium
         HE: Help
         X: Exit Connection

";

pub(super) const SCREEN: &str = "
   vMP HELP

         OVerview  - What the virtual console is, and how to get about
         LIst      - The commands, one a line
         <COMMAND> - Help on this command
         TOPics    - Show all vMP Help topics and commands
         HElp      - Display this screen
         Q         - Quit help

";

pub(super) const POWER_CHOICE: &str = "
         ON    - Switch the guest on
         OFF   - Switch it off at once, as if its plug were pulled
         CYCLE - Off, then on again
         Q     - Quit, change nothing

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

/// A command and what help says about it.
struct CommandHelp {
    name: &'static str,
    line: &'static str,
    text: &'static str,
}

const COMMANDS: [CommandHelp; 7] = [
    CommandHelp {
        name: "CO",
        line: "Console: see the guest's console and type on it",
        text: "
   CO - Console

   Shows what the guest printed last and connects to its console. Everything
   typed goes to the guest, but Ctrl-B, which returns to the main menu: that
   key itself cannot be sent. While the guest is off, CO waits until it is
   switched on.

",
    },
    CommandHelp {
        name: "CM",
        line: "Command Menu: the commands that act on the guest",
        text: "
   CM - Command Menu

   Leads to the commands that act on the guest: PC, IN and EJ. Ctrl-B
   returns to the main menu.

",
    },
    CommandHelp {
        name: "PC",
        line: "Power Control: switch the guest on or off",
        text: "
   PC - Power Control

         PC -on     Switch the guest on
         PC -off    Switch it off at once, as if its plug were pulled
         PC -cycle  Off, then on again
         PC         Show the power state, then ask

   With an option nothing is asked. To let the guest shut itself down, use
   hpvmstop -g on the VM Host. PC works in the main menu too.

",
    },
    CommandHelp {
        name: "IN",
        line: "Insert: put another medium into the guest's virtual DVD drive",
        text: "
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
    },
    CommandHelp {
        name: "EJ",
        line: "Eject: take the medium out of the guest's virtual DVD drive",
        text: "
   EJ - Eject Medium

         EJ                            Take the medium out
         EJ -pcipath BUS DEV TGT       Of several drives, from that one

   A guest that locked its drive is asked to let the medium go.

",
    },
    CommandHelp {
        name: "HE",
        line: "Help: this help; HE <COMMAND> shows the help on one command",
        text: "
   HE - Help

         HE            Enter the help; Q leaves it
         HE <COMMAND>  Show the help on one command, or one topic

",
    },
    CommandHelp {
        name: "X",
        line: "Exit: end this session; the guest runs on",
        text: "
   X - Exit Connection

   Ends this session. The guest runs on, and other sessions are not touched.

",
    },
];

/// For messages; a test compares it with the table.
pub(super) const COMMANDS_THERE_ARE: &str = "CO, CM, PC, IN, EJ, HE, X";

/// A part of the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    Overview,
    List,
    Topics,
    Screen,
    /// A place in [`COMMANDS`].
    Command(usize),
}

impl Topic {
    /// A topic by its name, which may be cut down to its capitals, or a command.
    pub(super) fn parse(word: &str) -> Result<Topic, MenuError> {
        let named = [
            ("OVERVIEW", 2, Topic::Overview),
            ("LIST", 2, Topic::List),
            ("TOPICS", 3, Topic::Topics),
            ("HELP", 3, Topic::Screen),
            ("?", 1, Topic::Screen),
        ];
        let upper = word.to_uppercase();
        let command = COMMANDS.iter().position(|command| command.name == upper);
        let topic = || {
            let meant = |(name, shortest, _): &&(&str, usize, Topic)| {
                upper.len() >= *shortest && name.starts_with(&upper)
            };
            named.iter().find(meant).map(|(_, _, topic)| *topic)
        };
        command
            .map(Topic::Command)
            .or_else(topic)
            .ok_or_else(|| MenuError::NoHelp { given: quoted(word) })
    }

    pub(super) fn text(self) -> String {
        match self {
            Topic::Overview => OVERVIEW.into(),
            Topic::List => list(),
            Topic::Topics => topics(),
            Topic::Screen => SCREEN.into(),
            Topic::Command(place) => COMMANDS[place].text.into(),
        }
    }
}

fn list() -> String {
    let lines: String = COMMANDS
        .iter()
        .map(|command| format!("         {:<4}- {}\n", command.name, command.line))
        .collect();
    format!("\n   LIst of the vMP commands\n\n{lines}\n")
}

fn topics() -> String {
    let texts: String = COMMANDS.iter().map(|command| command.text).collect();
    [OVERVIEW, &list(), &texts].concat().replace("\n\n\n", "\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_commands_of_the_table() {
        let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
        assert_eq!(names.join(", "), COMMANDS_THERE_ARE);
    }

    #[test]
    fn every_command_is_understood_by_the_menu() {
        for command in &COMMANDS {
            assert!(super::super::Command::parse(command.name).is_ok(), "{}", command.name);
        }
    }
}
