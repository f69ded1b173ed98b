//! Virtual switches and the guests' NICs as rows. Which guests have a port is asked of their NICs, which name their switch;
//! so a switch that is renamed takes them along, in the same change.

use hpvm_model::{
    Forward, GuestConfig, GuestName, GuestNumber, InterfaceName, MacAddress, Nic, PortNumber,
    PortRules, SwitchName, SwitchNumber, SwitchState, Vswitch, Wire,
};
use rusqlite::{OptionalExtension, Row, params};

use crate::change::Change;
use crate::error::RegistryError;
use crate::guest::{number, parsed, slot, wrong};
use crate::open::Registry;

/// The tables of networks came with this version.
const SINCE_VERSION: i64 = 4;

/// What names one virtual switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwitchSelector {
    Name(SwitchName),
    Number(SwitchNumber),
}

/// A NIC and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicRow {
    pub guest: GuestName,
    pub number: GuestNumber,
    pub nic: Nic,
    /// Of a guest that was removed and is kept: its MAC address stays taken, its port does not.
    pub removed: bool,
}

impl Registry {
    pub(crate) fn has_networks(&self) -> bool {
        self.version.get() >= SINCE_VERSION
    }

    /// All virtual switches, in order of number. A registry from before there were any has the one that always exists.
    pub fn vswitches(&self) -> Result<Vec<Vswitch>, RegistryError> {
        if !self.has_networks() {
            // As an upgrade makes it.
            let localnet = Vswitch::new(SwitchNumber::LOCALNET, SwitchName::localnet());
            return Ok(vec![Vswitch { state: SwitchState::Up, ..localnet }]);
        }
        self.in_one_view(|| {
            let sql = "SELECT number, name, wire, interface, state FROM vswitch ORDER BY number";
            let mut switches = self.rows(sql, [], vswitch)?;
            let place = |switches: &[Vswitch], number| {
                switches.iter().position(|switch| switch.number == number)
            };
            let sql = "SELECT vswitch, forward FROM forward ORDER BY vswitch, place";
            for (number, forward) in self.rows(sql, [], forward)? {
                if let Some(index) = place(&switches, number) {
                    switches[index].forwards.push(forward);
                }
            }
            let sql = "SELECT vswitch, port, rules FROM switch_port";
            for (number, port, rules) in self.rows(sql, [], switch_port)? {
                if let Some(index) = place(&switches, number) {
                    switches[index].ports.insert(port, rules);
                }
            }
            Ok(switches)
        })
        .map_err(self.failed("read the virtual switches"))
    }

    /// One virtual switch.
    pub fn vswitch(&self, selector: &SwitchSelector) -> Result<Option<Vswitch>, RegistryError> {
        let is_meant = |switch: &Vswitch| match selector {
            SwitchSelector::Name(name) => switch.name == *name,
            SwitchSelector::Number(number) => switch.number == *number,
        };
        // A VM Host has a handful.
        Ok(self.vswitches()?.into_iter().find(is_meant))
    }

    /// The NICs of all guests, removed ones included, in order of guest and slot.
    pub fn nics(&self) -> Result<Vec<NicRow>, RegistryError> {
        if !self.has_networks() {
            return Ok(Vec::new());
        }
        let sql = "SELECT nic.guest, bus, device, kind, mac, vswitch, port, name,
                 removed_at IS NOT NULL
             FROM nic JOIN guest ON guest.number = nic.guest
             ORDER BY nic.guest, bus, device";
        self.rows(sql, [], |row| {
            let (number, nic) = nic(row)?;
            Ok(NicRow { guest: parsed(row, 7)?, number, nic, removed: row.get(8)? })
        })
        .map_err(self.failed("read the guests' NICs"))
    }

    pub(crate) fn nic_rows<P: rusqlite::Params>(
        &self,
        filter: &str,
        parameters: P,
    ) -> rusqlite::Result<Vec<(GuestNumber, Nic)>> {
        if !self.has_networks() {
            return Ok(Vec::new());
        }
        let sql = format!("SELECT guest, bus, device, kind, mac, vswitch, port FROM nic {filter}");
        self.rows(&sql, parameters, nic)
    }

    pub(crate) fn miscounted_nics(&self) -> rusqlite::Result<Vec<String>> {
        if !self.has_networks() {
            return Ok(Vec::new());
        }
        let sql = "SELECT name, nic_count, (SELECT count(*) FROM nic WHERE guest = number) AS real
             FROM guest WHERE nic_count <> real";
        self.rows(sql, [], |row| {
            let (name, said, real) =
                (row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?);
            Ok(format!("guest {name} is said to have {said} NICs and has {real}"))
        })
    }
}

impl Change<'_> {
    /// The number for a new switch: one more than the highest, so that a number means one switch for as long as possible.
    pub fn next_switch_number(&self) -> Result<SwitchNumber, RegistryError> {
        let highest = self.vswitches()?.last().map_or(0, |switch| switch.number.get());
        SwitchNumber::new(highest + 1).ok_or(RegistryError::NoNumber)
    }

    /// Adds a switch.
    pub fn insert_vswitch(&self, switch: &Vswitch) -> Result<(), RegistryError> {
        self.require_free_switch_name(switch)?;
        let sql = "INSERT INTO vswitch (number, name, wire, interface, state)
             VALUES (?1, ?2, ?3, ?4, ?5)";
        self.store_vswitch(sql, switch)
            .and_then(|_| self.store_switch_parts(switch))
            .map_err(self.failed("add a virtual switch"))
    }

    /// Replaces the switch with the same number. When its name changes, the guests' NICs name it anew; gives those guests.
    pub fn update_vswitch(&self, switch: &Vswitch) -> Result<Vec<GuestConfig>, RegistryError> {
        self.require_free_switch_name(switch)?;
        let before = self
            .vswitch(&SwitchSelector::Number(switch.number))?
            .ok_or(RegistryError::NoSwitch(switch.number))?;
        let sql = "UPDATE vswitch SET name = ?2, wire = ?3, interface = ?4, state = ?5
             WHERE number = ?1";
        self.store_vswitch(sql, switch)
            .and_then(|_| self.forget_switch_parts(switch.number))
            .and_then(|()| self.store_switch_parts(switch))
            .map_err(self.failed("change a virtual switch"))?;
        match before.name == switch.name {
            true => Ok(Vec::new()),
            false => self.rename_in_nics(&before.name, &switch.name),
        }
    }

    /// Makes a switch known as its text says it is, whether or not there is one with its number: one always exists.
    pub fn enter_vswitch(&self, switch: &Vswitch) -> Result<(), RegistryError> {
        match self.vswitch(&SwitchSelector::Number(switch.number))? {
            Some(_) => self.update_vswitch(switch).map(drop),
            None => self.insert_vswitch(switch),
        }
    }

    /// Forgets a switch. NICs that name it go on doing so.
    pub fn remove_vswitch(&self, number: SwitchNumber) -> Result<(), RegistryError> {
        match self.connection.execute("DELETE FROM vswitch WHERE number = ?1", [number.get()]) {
            Ok(0) => Err(RegistryError::NoSwitch(number)),
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed("delete a virtual switch")(error)),
        }
    }

    fn rename_in_nics(
        &self,
        from: &SwitchName,
        to: &SwitchName,
    ) -> Result<Vec<GuestConfig>, RegistryError> {
        self.connection
            .execute(
                "UPDATE nic SET vswitch = ?2 WHERE vswitch = ?1",
                params![from.as_str(), to.as_str()],
            )
            .map_err(self.failed("change a virtual switch"))?;
        let mut guests = self.all()?;
        guests.retain(|guest| guest.nics.iter().any(|nic| nic.vswitch == *to));
        Ok(guests)
    }

    fn store_vswitch(&self, sql: &str, switch: &Vswitch) -> rusqlite::Result<usize> {
        let wire = match switch.wire {
            Wire::None => "none",
            Wire::Nic(_) => "nic",
            Wire::Tap(_) => "tap",
            Wire::Nat => "nat",
        };
        self.connection.prepare_cached(sql)?.execute(params![
            switch.number.get(),
            switch.name.as_str(),
            wire,
            switch.wire.interface().map(InterfaceName::as_str),
            switch.state.as_str(),
        ])
    }

    fn store_switch_parts(&self, switch: &Vswitch) -> rusqlite::Result<()> {
        let sql = "INSERT INTO forward (vswitch, place, forward) VALUES (?1, ?2, ?3)";
        for (place, forward) in switch.forwards.iter().enumerate() {
            let place = i64::try_from(place).unwrap_or(i64::MAX);
            let values = params![switch.number.get(), place, forward.to_string()];
            self.connection.prepare_cached(sql)?.execute(values)?;
        }
        let sql = "INSERT INTO switch_port (vswitch, port, rules) VALUES (?1, ?2, ?3)";
        for (port, rules) in &switch.ports {
            // Numbers, words and addresses: there is nothing that serde could refuse.
            let rules = serde_json::to_string(rules).unwrap_or_default();
            let values = params![switch.number.get(), port.number(), rules];
            self.connection.prepare_cached(sql)?.execute(values)?;
        }
        Ok(())
    }

    fn forget_switch_parts(&self, number: SwitchNumber) -> rusqlite::Result<()> {
        for sql in
            ["DELETE FROM forward WHERE vswitch = ?1", "DELETE FROM switch_port WHERE vswitch = ?1"]
        {
            self.connection.prepare_cached(sql)?.execute([number.get()])?;
        }
        Ok(())
    }

    /// Refuses a name that another switch has.
    pub fn require_free_switch_name(&self, switch: &Vswitch) -> Result<(), RegistryError> {
        match self.vswitch(&SwitchSelector::Name(switch.name.clone()))? {
            Some(other) if other.number != switch.number => {
                Err(RegistryError::SwitchNameTaken { name: other.name, number: other.number })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn store_nic(&self, guest: GuestNumber, nic: &Nic) -> rusqlite::Result<()> {
        let sql = "INSERT INTO nic (guest, bus, device, kind, mac, vswitch, port)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        self.connection.prepare_cached(sql)?.execute(params![
            guest.get(),
            nic.slot.bus(),
            nic.slot.device(),
            nic.kind.as_str(),
            nic.mac.to_string(),
            nic.vswitch.as_str(),
            nic.port.number(),
        ])?;
        Ok(())
    }

    /// No other guest, existing or kept, has a MAC address that is new in this one: what it has already it may have from the
    /// guest it was made after, and what `like` has it is to have as well.
    pub(crate) fn require_free_macs(
        &self,
        guest: &GuestConfig,
        like: Option<GuestNumber>,
    ) -> Result<(), RegistryError> {
        let sql = "SELECT name FROM nic JOIN guest ON guest.number = nic.guest
             WHERE mac = ?1 AND nic.guest <> ?2 AND NOT EXISTS (
                 SELECT 1 FROM nic AS known WHERE known.guest IN (?2, ?3) AND known.mac = ?1
             ) LIMIT 1";
        for nic in &guest.nics {
            let like = like.map(GuestNumber::get);
            let key = params![nic.mac.to_string(), guest.number.get(), like];
            let holder = self
                .connection
                .prepare_cached(sql)
                .and_then(|mut ask| ask.query_row(key, |row| parsed(row, 0)).optional())
                .map_err(self.failed("look for a MAC address"))?;
            if let Some(guest) = holder {
                return Err(RegistryError::MacTaken { mac: nic.mac, guest });
            }
        }
        Ok(())
    }
}

fn vswitch(row: &Row<'_>) -> rusqlite::Result<Vswitch> {
    let interface = || parsed::<InterfaceName>(row, 3);
    let wire = match row.get_ref(2)?.as_str().map_err(|e| wrong(2, e))? {
        "none" => Wire::None,
        "nic" => Wire::Nic(interface()?),
        "tap" => Wire::Tap(interface()?),
        "nat" => Wire::Nat,
        other => return Err(wrong(2, format!("'{other}' is no wire"))),
    };
    let mut switch = Vswitch::new(switch_number(row)?, parsed(row, 1)?);
    switch.wire = wire;
    switch.state = parsed(row, 4)?;
    Ok(switch)
}

fn switch_number(row: &Row<'_>) -> rusqlite::Result<SwitchNumber> {
    SwitchNumber::try_from(row.get::<_, u32>(0)?).map_err(|e| wrong(0, e))
}

fn forward(row: &Row<'_>) -> rusqlite::Result<(SwitchNumber, Forward)> {
    Ok((switch_number(row)?, parsed(row, 1)?))
}

fn switch_port(row: &Row<'_>) -> rusqlite::Result<(SwitchNumber, PortNumber, PortRules)> {
    let rules: String = row.get(2)?;
    let rules = serde_json::from_str(&rules).map_err(|e| wrong(2, e))?;
    Ok((switch_number(row)?, port(row, 1)?, rules))
}

/// Seven columns: guest, bus, device, kind, MAC address, switch, port.
fn nic(row: &Row<'_>) -> rusqlite::Result<(GuestNumber, Nic)> {
    let mac: MacAddress = parsed(row, 4)?;
    let nic = Nic {
        kind: parsed(row, 3)?,
        slot: slot(row, 1)?,
        mac,
        vswitch: parsed(row, 5)?,
        port: port(row, 6)?,
    };
    Ok((number(row, 0)?, nic))
}

fn port(row: &Row<'_>, column: usize) -> rusqlite::Result<PortNumber> {
    PortNumber::try_from(row.get::<_, u16>(column)?).map_err(|e| wrong(column, e))
}
