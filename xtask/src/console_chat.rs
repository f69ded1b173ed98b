//! `cargo xtask console-chat`: a person at hpvmconsole, played by a program, for the demo.
//!
//! Opens the virtual console, waits for the guest's login, logs in, types commands, logs out and leaves through the menu.
//! Everything the console shows is printed as plain lines. Each wait has a bound, and a failure says what was awaited and
//! what came instead.
//!
//! hpvmconsole wants a terminal: script(1) gives it one and joins it to our pipes.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
usage: cargo xtask console-chat [--wait SECONDS] [--login NAME:PASSWORD] [--run COMMAND]... -- PROGRAM [ARGUMENT]...

PROGRAM is hpvmconsole with its arguments. --wait bounds the time until the guest asks for a login (120).
";

const MENU_PROMPT: &str = "vMP> ";
const LIVE_RULE: &str = "Live Console";
const LOGIN_PROMPT: &str = "login: ";
/// What a login that went well says of the one before; it may come in pieces, and then ends as the prompt does.
const LAST_LOGIN: &str = "Last login: ";
const PASSWORD_PROMPT: &str = "Password: ";
const SHELL_PROMPT: &str = "# ";
const LEAVE: &str = "\x02";

/// hpvmconsole itself answers at once; the bound is for a loaded machine.
const MENU_BOUND: Duration = Duration::from_secs(20);
/// What a guest under emulation may take for a login or a command.
const GUEST_BOUND: Duration = Duration::from_secs(60);
/// A guest that was silent for so long has perhaps asked before we came: Enter makes it ask again.
const SILENCE: Duration = Duration::from_secs(5);

struct Request {
    wait: Duration,
    user: String,
    password: String,
    commands: Vec<String>,
    program: Vec<String>,
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let Some(request) = parse(arguments) else { bail!("wrong arguments\n{USAGE}") };
    let mut console = Console::open(&request.program)?;
    console.expect(&[MENU_PROMPT], MENU_BOUND)?;
    console.send("co\r")?;
    console.after(LIVE_RULE, MENU_BOUND)?;
    let logged_in_before = console.reach_shell(&request)?;
    for command in &request.commands {
        console.send(&format!("{command}\r"))?;
        console.expect(&[SHELL_PROMPT], GUEST_BOUND)?;
    }
    if !logged_in_before {
        console.send("exit\r")?;
        console.expect(&[LOGIN_PROMPT], GUEST_BOUND)?;
    }
    console.send(LEAVE)?;
    console.expect(&[MENU_PROMPT], MENU_BOUND)?;
    console.send("x\r")?;
    console.end(MENU_BOUND)
}

fn parse(arguments: &[String]) -> Option<Request> {
    let mut request = Request {
        wait: Duration::from_secs(120),
        user: "root".to_owned(),
        password: "hpvm".to_owned(),
        commands: Vec::new(),
        program: Vec::new(),
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--wait" => request.wait = Duration::from_secs(words.next()?.parse().ok()?),
            "--login" => {
                let (user, password) = words.next()?.split_once(':')?;
                (request.user, request.password) = (user.to_owned(), password.to_owned());
            }
            "--run" => request.commands.push(words.next()?.clone()),
            "--" => break,
            _ => return None,
        }
    }
    request.program = words.cloned().collect();
    (!request.program.is_empty()).then_some(request)
}

/// hpvmconsole on a terminal of its own.
struct Console {
    process: Child,
    keyboard: ChildStdin,
    screen: Receiver<Vec<u8>>,
    plain: PlainText,
    /// What was shown and not yet expected.
    shown: String,
    at_line_start: bool,
}

impl Console {
    fn open(program: &[String]) -> Result<Self> {
        let quoted: Vec<String> =
            program.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        let mut process = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", &quoted.join(" "), "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting script (package bsdutils)")?;
        let keyboard = process.stdin.take().context("script has no input")?;
        let mut output = process.stdout.take().context("script has no output")?;
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let plain = PlainText::default();
        Ok(Self { process, keyboard, screen, plain, shown: String::new(), at_line_start: true })
    }

    fn send(&mut self, keys: &str) -> Result<()> {
        let typing = || format!("typing {keys:?} at the console");
        self.keyboard.write_all(keys.as_bytes()).with_context(typing)?;
        self.keyboard.flush().with_context(typing)
    }

    /// Waits until the screen ends with one of `endings`, as a prompt does, and gives which one.
    fn expect<'a>(&mut self, endings: &[&'a str], bound: Duration) -> Result<&'a str> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(ending) = self.take_ending(endings) {
                return Ok(ending);
            }
            if self.show_more(deadline)? == Screen::Silent {
                bail!("{}", self.missed(&endings.join("' or '"), bound));
            }
        }
    }

    /// Waits until `text` was shown, and forgets all up to the end of its line.
    fn after(&mut self, text: &str, bound: Duration) -> Result<()> {
        let deadline = Instant::now() + bound;
        loop {
            let rest = self.shown.split_once(text).and_then(|(_, rest)| rest.split_once('\n'));
            if let Some((_, live)) = rest {
                self.shown = live.to_owned();
                return Ok(());
            }
            if self.show_more(deadline)? == Screen::Silent {
                bail!("{}", self.missed(text, bound));
            }
        }
    }

    /// Logs in, unless a shell is there already; tells whether it was.
    fn reach_shell(&mut self, request: &Request) -> Result<bool> {
        let deadline = Instant::now() + request.wait;
        loop {
            match self.take_ending(&[LOGIN_PROMPT, SHELL_PROMPT]) {
                Some(LOGIN_PROMPT) => break,
                Some(_) => return Ok(true),
                None => {}
            }
            if self.show_more(deadline.min(Instant::now() + SILENCE))? == Screen::Silent {
                if Instant::now() >= deadline {
                    bail!("{}", self.missed(LOGIN_PROMPT, request.wait));
                }
                self.send("\r")?;
            }
        }
        self.send(&format!("{}\r", request.user))?;
        self.expect(&[PASSWORD_PROMPT], GUEST_BOUND)?;
        self.send(&format!("{}\r", request.password))?;
        match self.expect(&[SHELL_PROMPT, LOGIN_PROMPT], GUEST_BOUND)? {
            SHELL_PROMPT => Ok(false),
            _ => bail!("the guest refused the login of {}", request.user),
        }
    }

    /// Waits until hpvmconsole has ended well.
    fn end(mut self, bound: Duration) -> Result<()> {
        let deadline = Instant::now() + bound;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.show(&bytes),
                Err(RecvTimeoutError::Timeout) => bail!("hpvmconsole did not end after X"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.finish_line();
        let status = self.process.wait().context("waiting for hpvmconsole")?;
        if !status.success() {
            bail!("hpvmconsole ended with {status}");
        }
        Ok(())
    }

    fn take_ending<'a>(&mut self, endings: &[&'a str]) -> Option<&'a str> {
        if self.shown.ends_with(LAST_LOGIN) {
            return None;
        }
        let ending = endings.iter().copied().find(|ending| self.shown.ends_with(ending))?;
        self.shown.clear();
        Some(ending)
    }

    fn show_more(&mut self, deadline: Instant) -> Result<Screen> {
        match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => {
                self.show(&bytes);
                Ok(Screen::Showed)
            }
            Err(RecvTimeoutError::Timeout) => Ok(Screen::Silent),
            Err(RecvTimeoutError::Disconnected) => {
                self.finish_line();
                bail!("hpvmconsole ended before it was told to")
            }
        }
    }

    fn show(&mut self, bytes: &[u8]) {
        let text = self.plain.push(bytes);
        let mut stdout = std::io::stdout().lock();
        for character in text.chars() {
            if self.at_line_start && character == '\n' {
                continue;
            }
            // Losing what we print for people must not stop the talk with the guest.
            let margin = if self.at_line_start { "  | " } else { "" };
            let _printed = write!(stdout, "{margin}{character}");
            self.at_line_start = character == '\n';
        }
        let _printed = stdout.flush();
        drop(stdout);
        self.shown.push_str(&text);
    }

    fn finish_line(&mut self) {
        if !self.at_line_start {
            println!();
            self.at_line_start = true;
        }
    }

    fn missed(&mut self, awaited: &str, bound: Duration) -> String {
        self.finish_line();
        let lines: Vec<&str> = self.shown.lines().rev().take(5).collect();
        let last: Vec<&str> = lines.into_iter().rev().collect();
        let seconds = bound.as_secs();
        format!("waited {seconds} s for '{awaited}' on the console; it shows:\n{}", last.join("\n"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // After a failure hpvmconsole still runs; its terminal goes with script, and so does it.
        let _ended_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[derive(PartialEq, Eq)]
enum Screen {
    Showed,
    Silent,
}

/// Takes what a terminal would obey, not show, out of a stream: escape sequences and control characters.
#[derive(Default)]
struct PlainText {
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Text,
    Escape,
    ControlSequence,
    SystemCommand,
}

impl PlainText {
    fn push(&mut self, bytes: &[u8]) -> String {
        let mut text = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.state = match (&self.state, byte) {
                (State::Text | State::SystemCommand, 0x1b) => State::Escape,
                (State::Text, b'\n' | b'\t' | 0x20..=0x7e | 0x80..) => {
                    text.push(byte);
                    State::Text
                }
                (State::Escape, b'[') => State::ControlSequence,
                (State::Escape, b']') => State::SystemCommand,
                (State::ControlSequence, 0x20..=0x3f) => State::ControlSequence,
                (State::SystemCommand, 0x07) => State::Text,
                (State::SystemCommand, _) => State::SystemCommand,
                _ => State::Text,
            };
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A console of a guest that had asked for a login before, and whose root has a password.
    const CONSOLE: &str = r#"
        stty -icanon -echo
        key() { dd bs=1 count=1 2>/dev/null; }
        printf '\n   vMP MAIN MENU\n\n[demo] vMP> '; read -r verb; [ "$verb" = co ] || exit 9
        printf -- '- - Prior Console Output - -\nold login: \n- - Live Console - -\n'
        printf '\033[2Jbooting'; read -r poke; [ -z "$poke" ] || exit 8
        printf '\ndemo login: '; read -r user
        printf 'Password: '; read -r password
        [ "$user:$password" = root:hpvm ] || { printf '\nLogin incorrect\ndemo login: '; read -r x; exit 7; }
        printf '\nLast login: '; sleep 0.2; printf 'Tue Nov 24 on ttyS0'
        printf '\n\033[?2004hroot@demo:~# '; read -r command
        printf 'did %s\nroot@demo:~# ' "$command"; read -r bye; [ "$bye" = exit ] || exit 6
        printf '\ndemo login: '
        [ "$(key)" = "$(printf '\002')" ] || exit 5
        printf '\n[demo] vMP> '; read -r verb; [ "$verb" = x ] || exit 4
    "#;

    fn chat(options: &[&str], console: &str) -> Result<()> {
        let words = [options, &["--", "sh", "-c", console]].concat();
        run(&words.into_iter().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn logs_in_runs_and_leaves() {
        chat(&["--run", "uname -a"], CONSOLE).unwrap();
    }

    #[test]
    fn a_refused_login_is_told() {
        let error = chat(&["--login", "root:wrong"], CONSOLE).unwrap_err().to_string();
        assert!(error.contains("refused the login of root"), "{error}");
    }

    #[test]
    fn a_guest_that_never_asks_is_told_with_what_it_shows() {
        let silent = r#"printf 'vMP> '; read -r verb; printf 'Live Console\nShell>\n'; read -r x; read -r x"#;
        let error = chat(&["--wait", "1"], silent).unwrap_err().to_string();
        assert!(error.contains("waited 1 s for 'login: '") && error.contains("Shell>"), "{error}");
    }

    #[test]
    fn a_console_that_ends_early_is_told() {
        let error = chat(&[], "printf 'no such guest\\n'; exit 1").unwrap_err().to_string();
        assert!(error.contains("ended before"), "{error}");
    }

    #[test]
    fn escape_sequences_may_be_cut_anywhere() {
        let stream = b"a\x1b[2J\x1b[01;31mb\x1b]0;title\x07c\x1bcd\r\n\x1b[6n";
        for cut in 0..stream.len() {
            let mut plain = PlainText::default();
            let (first, second) = stream.split_at(cut);
            assert_eq!(plain.push(first) + &plain.push(second), "abcd\n", "cut at {cut}");
        }
    }
}
