//! NICs that come to a running guest and leave it.
//!
//! | change | sequence |
//! | --- | --- |
//! | plug | `chardev-add` (AVIO), `netdev_add`, `device_add`; the switch listens already, since `netdev_add` towards a back-end that is absent holds QEMU's main loop up |
//! | unplug | `device_del`, which asks the guest; when it has let go `netdev_del` and `chardev-remove` |

use hpvm_model::{NicKind, PciSlot};
use hpvm_plan::command_line::network::{
    chardev_id, chardev_properties, netdev_id, netdev_properties, nic_id, nic_properties,
};
use hpvm_plan::record::AttachedNic;
use hpvm_qmp::Error as QmpError;
use hpvm_qmp::command::{ChardevAdd, ChardevRemove, DeviceAdd, DeviceDel, NetdevAdd, NetdevDel};

use super::{Bench, Deletion, DeviceError, LET_GO, Performed, properties};

impl Bench<'_> {
    pub(super) async fn plug_nic(
        &mut self,
        attached: &AttachedNic,
    ) -> Result<Performed, DeviceError> {
        let slot = attached.nic.slot;
        let plugged = self.add_nic(attached).await;
        if let Err(error) = plugged {
            self.discard_nic(slot).await;
            return Err(error.into());
        }
        Ok(Performed::Done)
    }

    async fn add_nic(&mut self, attached: &AttachedNic) -> Result<(), QmpError> {
        if attached.nic.kind == NicKind::AvioLan {
            let wanted = properties(&chardev_properties(attached));
            self.client.execute(&ChardevAdd(wanted)).await?;
        }
        self.client.execute(&NetdevAdd(properties(&netdev_properties(attached)))).await?;
        self.client.execute(&DeviceAdd(properties(&nic_properties(attached, None)))).await?;
        Ok(())
    }

    pub(super) async fn unplug_nic(&mut self, slot: PciSlot) -> Result<Performed, DeviceError> {
        let id = nic_id(slot);
        self.client.execute(&DeviceDel { id: id.clone() }).await?;
        match self.until_deleted(&id, LET_GO).await {
            Deletion::Done => {
                self.discard_nic(slot).await;
                Ok(Performed::Done)
            }
            Deletion::Refused => Err(DeviceError::Refused(slot)),
            Deletion::NotYet => Ok(Performed::Asked),
        }
    }

    /// Takes out what a NIC leaves in the engine, or what came of one that was not plugged in. What is not there any more
    /// is refused, and that is fine.
    pub async fn discard_nic(&mut self, slot: PciSlot) {
        let _ = self.client.execute(&NetdevDel { id: netdev_id(slot) }).await;
        let _ = self.client.execute(&ChardevRemove { id: chardev_id(slot) }).await;
    }

    /// Takes out a NIC that was begun and not finished. A guest that does not let it go now loses it at its next reset.
    pub async fn undo_nic(&mut self, slot: PciSlot) {
        let id = nic_id(slot);
        if self.client.execute(&DeviceDel { id: id.clone() }).await.is_ok() {
            self.until_absent(&id, LET_GO).await;
        }
        self.discard_nic(slot).await;
    }
}
