//! Questions, and what is not an answer to them.

use super::{inhabited, through_shell};
use crate::Test;
use crate::refusals::{State, no_control_bytes};
use crate::terminal::Terminal;

pub(crate) const TESTS: &[Test] =
    crate::tests![questions_that_nobody_answers, questions_on_a_terminal, answers_that_are_no_yes];

/// Commands that ask, and the word they ask with.
const ASK: &[(&[&str], &str)] = &[
    (&["hpvmremove", "-P", "web"], "Remove the virtual machine 'web'? [n/y]:"),
    (&["hpvmremove", "-P", "web", "--purge"], "Remove the virtual machine 'web'? [n/y]:"),
    (&["hpvmremove", "-P", "gone", "--purge"], "'gone'? [n/y]:"),
    (&["hpvmstop", "-P", "other"], "Stop the virtual machine 'other'? [n/y]:"),
    (&["hpvmstop", "-P", "other", "-g"], "Stop the virtual machine 'other'? [n/y]:"),
    (&["hpvmstop", "-a"], "Stop the virtual machine 'other'? [n/y]:"),
    (&["hpvmnet", "-S", "localnet", "-h"], "Halt the vswitch 'localnet'? [n]:"),
];

/// Beside it what a script is to do.
const UNANSWERED: &str = ": the input ended before the question was answered; nothing was changed, and --force asks nothing\n";

/// End of file means no: nothing is done, and the exit status says so.
fn questions_that_nobody_answers() {
    let host = inhabited();
    let before = State::of(&host);
    for (line, question) in ASK {
        for outcome in [host.run(line), through_shell(&host, line, "<&-")] {
            assert_eq!(outcome.status.code(), Some(1), "{outcome}");
            assert!(outcome.stderr.contains(question), "{outcome}");
            assert!(outcome.stderr.ends_with(UNANSWERED), "{outcome}");
            assert_eq!(outcome.stderr.lines().count(), 2, "{outcome}");
            no_control_bytes(&outcome);
        }
        before.assert_unchanged(&host, &line.join(" "));
    }
}

fn answers_that_are_no_yes() {
    let host = inhabited();
    let before = State::of(&host);
    let noise = [b"x".repeat(1 << 16), b"\n".to_vec()].concat();
    let no = "the answer was no; nothing was changed\n";
    let answers: [(&[u8], &str); 8] = [
        (b"n\n", no),
        (b"\n", no),
        (b"no", no),
        (b"yy\n", UNANSWERED),
        (b"\xff\xfe\n", UNANSWERED),
        (b"\x1b[2J\n", UNANSWERED),
        (b"\0\0\0", UNANSWERED),
        (&noise, UNANSWERED),
    ];
    for (answer, end) in answers {
        for (line, question) in ASK {
            let outcome = host.run_with_input(line, answer);
            assert_eq!(outcome.status.code(), Some(1), "{answer:?}: {outcome}");
            assert!(outcome.stderr.contains(question), "{outcome}");
            assert!(outcome.stderr.ends_with(end), "{outcome}");
            assert!(outcome.stderr.contains("]: \n"), "no echo ends the line: {outcome}");
            let shown = outcome.stderr.chars().any(|c| c.is_control() && c != '\n');
            assert!(!shown, "{:?}", outcome.stderr);
        }
    }
    before.assert_unchanged(&host, "answers that are no yes");
    let noise = host.run_with_input(&["hpvmremove", "-P", "web"], b"maybe\nmaybe\nmaybe\nyes\n");
    assert!(noise.stderr.ends_with("neither by y nor by n; nothing was changed\n"), "{noise}");
    let outcome = host.run_with_input(&["hpvmremove", "-P", "web"], b"maybe\nYes\n");
    assert!(outcome.status.success(), "{outcome}");
    assert!(!host.ok(&["hpvmstatus"]).contains("web"));
}

/// On a terminal the question is shown where the answer is typed, and Ctrl-D is the end of file.
fn questions_on_a_terminal() {
    let host = inhabited();
    let before = State::of(&host);
    for (line, question) in ASK {
        for answer in ["\x04", "n\r"] {
            let mut asked = Terminal::of(host.command(line));
            asked.expect(question);
            asked.type_in(answer);
            assert_eq!(asked.ended(), Some(1), "{line:?} answered {answer:?}");
        }
        before.assert_unchanged(&host, &line.join(" "));
    }
    let mut asked = Terminal::of(host.command(&["hpvmstop", "-P", "other"]));
    asked.expect("Stop the virtual machine 'other'? [n/y]:");
    asked.type_in("y\r");
    assert_eq!(asked.ended(), Some(0));
    assert_eq!(host.state("other"), "Off");
}
