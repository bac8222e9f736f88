//! The node's containerd: brought up with the system image in it, and started again whenever it dies (its containers live
//! on in their shims meanwhile).

use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::containerd::{self, Settings};
use super::image::SystemImage;
use crate::cluster::layout::Layout;

/// How often it is checked that containerd still runs.
const CHECK: Duration = Duration::from_secs(2);

/// A containerd that was brought up.
pub struct Runtime {
    layout: Layout,
    settings: Settings,
    /// Reference of the system image in it.
    pub image: String,
}

/// Starts containerd, or finds it, and imports the system image. `handlers` are names beside `runc` for RuntimeClasses.
///
/// # Errors
/// A missing program, with the package to install; what containerd refused.
pub async fn start(layout: &Layout, handlers: &[String]) -> anyhow::Result<Runtime> {
    let image = SystemImage::from_current_exe()?;
    let mut settings = Settings::detect(image.reference())?;
    settings.runtime_handlers = handlers.to_vec();
    containerd::ensure_running(layout, &settings).await?;
    let reference = image.reference().to_owned();
    import(layout, image).await?;
    Ok(Runtime {
        layout: layout.clone(),
        settings,
        image: reference,
    })
}

impl Runtime {
    /// Watches over it until `shutdown`.
    pub async fn keep(self, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(CHECK) => {}
            }
            if let Err(error) = containerd::ensure_running(&self.layout, &self.settings).await {
                tracing::error!(error = format!("{error:#}"), "containerd");
            }
        }
    }
}

async fn import(layout: &Layout, image: SystemImage) -> anyhow::Result<()> {
    if containerd::has_image(layout, image.reference()).await? {
        return Ok(());
    }
    let archive = layout.root().join("system-image.tar");
    image.write_archive(&archive)?;
    let result = containerd::import(layout, &archive).await;
    std::fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))?;
    result.map(|_| ())
}
