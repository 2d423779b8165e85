//! The launchers of Open MPI and MPICH themselves; world.rs does with made-up variables.

use crate::fixture::{Lab, VAE, assert_same, stderr};

#[test]
#[ignore = "needs Open MPI and MPICH: .ci/mpi installs them"]
fn mpirun_starts_a_run() {
    let lab = Lab::new();
    let more = ["--steps", "4", "--device", "cpu"];
    lab.run(&lab.start(VAE, "one", &more));
    for launcher in ["mpirun.openmpi", "mpirun.mpich"] {
        let arguments = lab.start(VAE, launcher, &more);
        // More processes than cores.
        let options = match launcher {
            "mpirun.openmpi" => "--oversubscribe",
            _ => "",
        };
        let script = format!("{launcher} {options} -n 2 \"$0\" {}", arguments.join(" "));
        let mut command = lab.shell(&script);
        command.env("RAYON_NUM_THREADS", "1");
        for allowed in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] {
            command.env(allowed, "1");
        }
        let output = command.output().expect("a shell");
        let told = stderr(&output);
        assert!(output.status.success(), "{launcher}: {told}");
        // One run of two processes, not two runs.
        assert_eq!(told.matches("from step 0 to 4").count(), 1, "{told}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), launcher);
        let starts = std::fs::read_to_string(lab.path(launcher).join("starts.jsonl"));
        assert!(starts.expect("starts").contains("\"processes\":2"));
        assert_same(&lab.path("one"), &lab.path(launcher));
    }
}
