//! IN and EJ: the media of the guest's drives. What a line wishes, and the questions until it is clear which drive and which
//! image are meant. Called by [`super::Menu`], which shows what is made here.

use super::{MenuError, quoted};
use crate::door::{Drive, DriveAddress};

/// What the user wants of a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    verb: Verb,
    drive: Option<DriveAddress>,
    image: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Insert,
    Eject,
}

/// What to do next about a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask for the medium to be changed.
    Change { drive: DriveAddress, image: Option<String> },
    /// Ask for the drive of the VM Host to be given back.
    GiveBack(DriveAddress),
    /// Ask the user which of these drives.
    WhichDrive { wish: Wish, drives: Vec<Drive> },
    /// Ask the user which image of this drive.
    WhichImage(Drive),
    /// There is nothing to be done, and why.
    Nothing(String),
    /// It cannot be done, and why.
    Impossible(String),
}

impl Wish {
    /// Reads the options of IN.
    pub(super) fn insert(words: &[&str]) -> Result<Wish, MenuError> {
        Wish::parse(Verb::Insert, words)
    }

    /// Reads the options of EJ.
    pub(super) fn eject(words: &[&str]) -> Result<Wish, MenuError> {
        Wish::parse(Verb::Eject, words)
    }

    fn parse(verb: Verb, words: &[&str]) -> Result<Wish, MenuError> {
        let mut wish = Wish { verb, drive: None, image: None };
        let mut rest = words;
        while let [option, after @ ..] = rest {
            rest = match (option.to_lowercase().as_str(), verb) {
                ("-pcipath", _) => {
                    let (drive, after) = address(after)?;
                    wish.drive = Some(drive);
                    after
                }
                ("-filedvd", Verb::Insert) if !after.is_empty() => {
                    let (name, after) = image(after);
                    wish.image = Some(name);
                    after
                }
                _ => return Err(MenuError::MediaOption { given: quoted(option) }),
            };
        }
        Ok(wish)
    }

    /// Decides with the guest's drives.
    pub(super) fn among(self, drives: Vec<Drive>) -> Next {
        if let Some(address) = self.drive {
            return match drives.into_iter().find(|drive| drive.address == address) {
                Some(drive) => self.on(drive),
                None => Next::Impossible(format!("the guest has no drive at {address}")),
            };
        }
        match <[Drive; 1]>::try_from(drives) {
            Ok([drive]) => self.on(drive),
            Err(drives) if drives.is_empty() => {
                Next::Impossible("the guest has no drive; hpvmmodify -a dvd:… adds one".into())
            }
            Err(drives) => Next::WhichDrive { wish: self, drives },
        }
    }

    pub(super) fn on(self, drive: Drive) -> Next {
        let address = drive.address;
        match (self.verb, self.image) {
            (Verb::Eject, _) if drive.medium.is_none() => {
                Next::Nothing(format!("the drive at {address} is empty already"))
            }
            (Verb::Eject, _) => Next::Change { drive: address, image: None },
            (Verb::Insert, None) if drive.is_hosts() && drive.medium.is_none() => {
                Next::GiveBack(address)
            }
            (Verb::Insert, _) if drive.is_hosts() => Next::Impossible(format!(
                "the drive at {address} is the VM Host's own and takes no image; IN alone gives it back once it was ejected, and `hpvmmodify -P GUEST -m dvd:ADAPTER:{address}:file:IMAGE` puts an image in its place"
            )),
            (Verb::Insert, Some(image)) => Next::Change { drive: address, image: Some(image) },
            (Verb::Insert, None) if drive.images.is_empty() => {
                let none = || format!("there is no image to choose for the drive at {address}");
                Next::Impossible(drive.trouble.unwrap_or_else(none))
            }
            (Verb::Insert, None) => Next::WhichImage(drive),
        }
    }
}

/// A name may hold blanks, so it goes to the end of the line, or to the address of a drive that ends the line.
fn image<'a>(words: &'a [&'a str]) -> (String, &'a [&'a str]) {
    let is_end = |place: &usize| {
        let [option, after @ ..] = &words[*place..] else { return false };
        let whole = |after| address(after).is_ok_and(|(_, rest)| rest.is_empty());
        option.eq_ignore_ascii_case("-pcipath") && whole(after)
    };
    let end = (1..words.len()).find(is_end).unwrap_or(words.len());
    (words[..end].join(" "), &words[end..])
}

/// `bus dev tgt`, or `bus,dev,tgt` as hpvmstatus prints it.
fn address<'a>(words: &'a [&'a str]) -> Result<(DriveAddress, &'a [&'a str]), MenuError> {
    let (parts, rest): (Vec<&str>, _) = match words {
        [one, rest @ ..] if one.contains(',') => (one.split(',').collect(), rest),
        [bus, device, target, rest @ ..] => (vec![bus, device, target], rest),
        other => (other.to_vec(), &[]),
    };
    let numbers: Vec<u8> = parts.iter().filter_map(|part| part.parse().ok()).collect();
    match numbers[..] {
        [bus, device, target] if parts.len() == 3 => {
            Ok((DriveAddress { bus, device, target }, rest))
        }
        _ => Err(MenuError::DriveAddress { given: quoted(&parts.join(" ")) }),
    }
}

/// The list of drives to choose from.
pub(super) fn drives_text(drives: &[Drive]) -> String {
    let line = |(number, drive): (usize, &Drive)| {
        let medium = drive.medium.as_deref().map_or("empty".into(), shown);
        format!("      {:>4}  drive {}: {medium}\n", number + 1, drive.address)
    };
    let lines: String = drives.iter().enumerate().map(line).collect();
    format!("\n{lines}\n")
}

/// The list of images to choose from.
pub(super) fn images_text(drive: &Drive) -> String {
    let line =
        |(number, image): (usize, &String)| format!("      {:>4}  {}\n", number + 1, shown(image));
    let lines: String = drive.images.iter().enumerate().map(line).collect();
    let folder = shown(drive.folder.as_deref().unwrap_or_default());
    let trouble =
        drive.trouble.as_ref().map_or(String::new(), |why| format!("   {}\n\n", shown(why)));
    format!("\n   Images for the drive at {}, from {folder}:\n\n{lines}\n{trouble}", drive.address)
}

/// Names of files may hold what a terminal takes for commands.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The answer to a line that makes none.
pub(super) fn no_choice(line: &str, count: usize) -> String {
    format!("   '{}' is none of 1 to {count}; Q changes nothing.\n", quoted(line))
}

/// The choice a line makes among so many, counted from 1.
pub(super) fn choice(line: &str, count: usize) -> Option<usize> {
    let number: usize = line.parse().ok()?;
    number.checked_sub(1).filter(|index| *index < count)
}
