package controller

import (
	"slices"
	"testing"
)

// The lines are those of a unit with ProtectSystem=strict, ProtectKernelTunables=yes, a state directory and ReadWritePaths with a space.
func TestTheFoldersOfASandboxAreItsWritableMounts(t *testing.T) {
	const box = `100 50 254:0 / / ro,relatime shared:1 master:1 - ext4 /dev/root rw
101 100 0:22 / /proc rw,nosuid shared:2 - proc proc rw
102 100 0:23 / /sys ro,nosuid shared:3 - sysfs sysfs rw
103 102 0:31 /rscctl /sys/fs/bpf/rscctl rw,nosuid shared:4 - bpf bpf rw,mode=700
104 100 0:5 / /dev rw,nosuid shared:5 - devtmpfs udev rw
105 104 0:25 / /dev/shm rw,nosuid shared:6 - tmpfs tmpfs rw
106 100 0:24 / /run ro,nosuid shared:7 - tmpfs tmpfs rw,mode=755
107 106 0:24 /rscctl /run/rscctl rw,nosuid shared:8 - tmpfs tmpfs rw,mode=755
108 100 254:0 /var/lib/rscctl /var/lib/rscctl rw,relatime shared:9 - ext4 /dev/root rw
109 100 254:0 /srv/a /srv/of\040web rw,relatime shared:10 - ext4 /dev/root rw
110 100 0:40 / /home ro,nosuid shared:11 - tmpfs tmpfs ro
`
	folders, boxed := writable(box, []string{"/var/lib/rscctl", "/sys/fs/bpf/rscctl"})
	if want := []string{"/run/rscctl", "/srv/of web"}; !boxed || !slices.Equal(folders, want) {
		t.Errorf("%v %q, want %q", boxed, folders, want)
	}
	if folders, boxed := writable("100 50 254:0 / / ro,relatime - ext4 /dev/root rw\n", nil); !boxed || !slices.Equal(folders, []string{"no folder"}) {
		t.Errorf("nothing is writable: %v %q", boxed, folders)
	}
	for name, text := range map[string]string{"a plain host": "100 50 254:0 / / rw,relatime - ext4 /dev/root rw\n", "nothing": "", "half a line": "100 50\n"} {
		if _, boxed := writable(text, nil); boxed {
			t.Errorf("%s: taken for a sandbox", name)
		}
	}
}
