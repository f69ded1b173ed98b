//! The options by which hpvmcreate, hpvmmodify and hpvmclone say what a guest is to be. A new one goes here, into
//! [`GuestOptions::request`], and to `docs/options.md`.

use hpvm_model::bytes::AskedMemory;
use hpvm_model::{AutoStart, Backing, Entitlement, Label, OsType, Vcpus};
use hpvm_plan::request::Request;

use super::devices::{
    Deed, DeviceStatement, put, statement_to_add, statement_to_delete, statement_to_modify,
};

#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct GuestOptions {
    /// The guest's operating system: hpux, windows, linux or unknown, in any case
    #[arg(short = 'O', long = "os-type", value_name = "TYPE[:VERSION]")]
    pub os: Option<OsType>,

    /// Number of virtual processors
    #[arg(short = 'c', long, value_name = "NUMBER")]
    pub vcpus: Option<Vcpus>,

    /// Share of one physical processor for each vCPU, from 5 to 100 percent
    #[arg(
        short = 'e',
        long,
        value_name = "PERCENT[:MAX]",
        value_parser = Entitlement::parse_percent,
        conflicts_with = "entitlement_cycles",
    )]
    pub entitlement: Option<Entitlement>,

    /// The same in MHz of one physical processor
    #[arg(short = 'E', long, value_name = "MHZ[:MAX]", value_parser = Entitlement::parse_cycles)]
    pub entitlement_cycles: Option<Entitlement>,

    /// Memory with M or G, such as 2048M or 1.5G; rounded up to 64 MB
    #[arg(short = 'r', long, value_name = "AMOUNT")]
    pub memory: Option<AskedMemory>,

    /// A note on the guest
    #[arg(short = 'l', long, value_name = "TEXT")]
    pub label: Option<Label>,

    /// Start with the VM Host (auto) or by command only (manual)
    #[arg(short = 'B', long = "boot", value_name = "auto|manual")]
    pub auto_start: Option<AutoStart>,

    /// Add a device, such as disk:avio_stor::file:/path or network:avio_lan::vswitch:localnet; may be repeated
    #[arg(short = 'a', long = "add", value_name = "STATEMENT", value_parser = statement_to_add)]
    pub add: Vec<DeviceStatement>,

    /// What lies under the qcow2 image that -a adds, such as file:/base.img, and is only read; the uppermost first
    #[arg(long = "layer", value_name = "STORAGE:LOCATION", value_parser = Backing::parse_layer)]
    pub layers: Vec<Backing>,
}

impl GuestOptions {
    /// What these options ask for.
    #[must_use]
    pub fn request(&self) -> Request {
        let mut request = Request {
            label: self.label.clone(),
            os: self.os.clone(),
            vcpus: self.vcpus,
            entitlement: self.entitlement.or(self.entitlement_cycles),
            memory: self.memory.as_ref().map(|memory| memory.memory),
            auto_start: self.auto_start,
            layers: self.layers.clone(),
            ..Request::default()
        };
        put(&mut request, Deed::Add, &self.add);
        request
    }

    /// What will not be as it was written, a sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(memory) = self.memory.as_ref().filter(|memory| memory.was_rounded()) {
            warnings.push(format!(
                "memory of {} is no multiple of 64 MB; it is rounded up to {}",
                memory.given, memory.memory
            ));
        }
        if self.entitlement.or(self.entitlement_cycles).is_some() {
            warnings.push("the entitlement is kept and shown, but nothing enforces it yet".into());
        }
        warnings
    }
}

/// What can be asked of a guest that has devices already: all that of a new one, and what becomes of those.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ChangeOptions {
    #[command(flatten)]
    pub guest: GuestOptions,

    /// Change the device at the statement's address; may be repeated
    #[arg(short = 'm', long, value_name = "STATEMENT", value_parser = statement_to_modify)]
    pub modify: Vec<DeviceStatement>,

    /// Take a device away; may be repeated
    #[arg(short = 'd', long, value_name = "STATEMENT", value_parser = statement_to_delete)]
    pub delete: Vec<DeviceStatement>,
}

impl ChangeOptions {
    /// What these options ask for.
    #[must_use]
    pub fn request(&self) -> Request {
        let mut request = self.guest.request();
        put(&mut request, Deed::Modify, &self.modify);
        put(&mut request, Deed::Delete, &self.delete);
        request
    }
}
