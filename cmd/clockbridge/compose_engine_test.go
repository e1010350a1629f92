//go:build compose

package main

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	composePlugin = flag.String("compose.plugin", "", "the docker-compose binary, version 2, that the compose suite uses")
	composeDir    = flag.String("compose.dir", "", "where the compose suite leaves its images for its next run, to be emptied when go.mod changes; \"\" = a temporary directory")
)

// docker is a Docker engine that nobody else uses.
type docker struct {
	*testing.T
	dir       string // of everything that it keeps
	env       []string
	authority tls.Certificate // which every container trusts that trusts the public ones
}

// startDocker starts an engine, which ends with t. It has the network namespace to itself, so that neither its bridges and rules nor the
// ports that are published meet anything else.
func startDocker(t *testing.T) *docker {
	t.Helper()
	for _, program := range []string{"dockerd", "docker", "busybox", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("the compose suite needs Debian's docker.io, iptables and busybox-static: %v", err)
		}
	}
	if *composePlugin == "" {
		t.Fatal("the compose suite needs Compose: -compose.plugin=/path/to/docker-compose; .ci/run says how to build it")
	}
	ownNetwork(t)
	d := &docker{T: t, dir: *composeDir}
	if d.dir == "" {
		d.dir = t.TempDir()
	}
	plugins := filepath.Join(d.dir, "config", "cli-plugins")
	if err := os.MkdirAll(plugins, 0o700); err != nil {
		t.Fatal(err)
	}
	plugin := filepath.Join(plugins, "docker-compose")
	if err := os.Symlink(*composePlugin, plugin); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	host := "unix://" + filepath.Join(d.dir, "docker.sock")
	d.env = append(os.Environ(), "DOCKER_HOST="+host, "DOCKER_CONFIG="+filepath.Join(d.dir, "config"), "HOME="+d.dir)

	logs, err := os.Create(filepath.Join(d.dir, "dockerd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	// Where overlays cannot be mounted it takes the driver vfs by itself.
	daemon := exec.Command("dockerd", "--host", host, "--data-root", filepath.Join(d.dir, "data"), "--exec-root", filepath.Join(d.dir, "exec"),
		"--pidfile", filepath.Join(d.dir, "docker.pid"))
	daemon.Stdout, daemon.Stderr = logs, logs
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		daemon.Wait() //nolint:errcheck // its log says how it ended
	}()
	t.Cleanup(func() {
		daemon.Process.Signal(syscall.SIGTERM)
		<-ended
		for _, left := range globs("/sys/fs/cgroup/*/docker/buildkit", "/sys/fs/cgroup/docker/buildkit", "/sys/fs/cgroup/*/docker", "/sys/fs/cgroup/docker") {
			os.Remove(left) // a group that somebody else uses is not empty, and stays
		}
	})
	up := pollEvery(100*time.Millisecond, time.Minute, func() bool {
		select {
		case <-ended:
			return true
		default:
			return exec.Command("docker", "--host", host, "info").Run() == nil
		}
	})
	if _, err := d.try("", "docker", "info"); !up || err != nil {
		text, _ := os.ReadFile(logs.Name()) // it is there
		t.Fatalf("dockerd does not start: %v\n%s", err, text)
	}
	return d
}

// ownNetwork wants a network namespace in which nothing is but the loopback interface, and starts that.
func ownNetwork(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("busybox", "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("start loopback interface: %v: %s", err, out)
	}
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagLoopback == 0 {
			t.Fatalf("the compose suite wants a network of its own, and here is %s: "+
				"unshare --net --mount --pid --fork --kill-child --mount-proc go test -tags compose ...", i.Name)
		}
	}
}

func globs(patterns ...string) (all []string) {
	for _, p := range patterns {
		found, _ := filepath.Glob(p) // the patterns are good
		all = append(all, found...)
	}
	return all
}

// try runs a program in a directory and returns what it prints.
func (d *docker) try(dir string, command ...string) (string, error) {
	c := exec.Command(command[0], command[1:]...)
	c.Dir, c.Env = dir, d.env
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// must runs docker, which must end well.
func (d *docker) must(args ...string) string {
	d.Helper()
	out, err := d.try("", append([]string{"docker"}, args...)...)
	if err != nil {
		d.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// standIns makes images that stand in for public ones, under their names, so that the files of this repository are used as they are.
func (d *docker) standIns() {
	d.Helper()
	out, err := exec.Command("go", "env", "GOROOT", "GOMODCACHE").Output()
	if err != nil {
		d.Fatal(err)
	}
	root, cache, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	golang := func(env string, args ...string) {
		c := exec.Command("go", args...)
		c.Env = append(os.Environ(), "GOSUMDB=off", "GOPROXY=file://"+cache+"/cache/download", env)
		if out, err := c.CombinedOutput(); err != nil {
			d.Fatalf("go %s: %v (go mod download comes first)\n%s", strings.Join(args, " "), err, out)
		}
	}
	d.makeAuthority()
	modules := d.TempDir() // what this module needs, of all that the cache holds
	golang("GOMODCACHE="+modules, "mod", "download")
	d.Cleanup(func() { golang("GOMODCACHE="+modules, "clean", "-modcache") }) // it is not writable
	d.standIn("golang:1.26", map[string]string{
		"usr/local/go": root, "go/pkg/mod": modules, "etc/ssl/certs/ca-certificates.crt": d.bundle(),
	}, "ENV PATH=/usr/local/go/bin:/bin", "ENV GOPATH=/go", "ENV GOTOOLCHAIN=local", "ENV GOPROXY=off", "ENV GOSUMDB=off")

	server := filepath.Join(d.TempDir(), "nats-server")
	golang("CGO_ENABLED=0", "build", "-o", server, "github.com/nats-io/nats-server/v2")
	d.standIn("nats:2.15-alpine", map[string]string{"usr/local/bin/nats-server": server})

	libc, loader := "lib/x86_64-linux-gnu/libc.so.6", "lib64/ld-linux-x86-64.so.2"
	d.standIn("prom/prometheus:v3.5.0", map[string]string{"bin/prometheus": "/usr/bin/prometheus", libc: "/" + libc, loader: "/" + loader},
		`ENTRYPOINT ["prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]`)

	// Of Grafana there is no package. What stands in shows on its port what is mounted where Grafana looks.
	d.standIn("grafana/grafana:12.0.2", nil, `ENTRYPOINT ["httpd", "-f", "-p", "3000", "-h", "/etc/grafana"]`)
}

// makeAuthority makes the authority of the API's certificates, unless an earlier run has left it along with the images.
func (d *docker) makeAuthority() {
	d.Helper()
	name, key := filepath.Join(d.dir, "authority.crt"), filepath.Join(d.dir, "authority.key")
	var err error
	if d.authority, err = tls.LoadX509KeyPair(name, key); err == nil {
		return
	}
	d.authority = d.certificate(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	der, err := x509.MarshalPKCS8PrivateKey(d.authority.PrivateKey)
	if err != nil {
		d.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name: {Type: "CERTIFICATE", Bytes: d.authority.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			d.Fatal(err)
		}
	}
}

// certificate signs what a template says: by a parent, or by itself if that is nil.
func (d *docker) certificate(template, parent *x509.Certificate) tls.Certificate {
	d.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		d.Fatal(err)
	}
	signer := any(key)
	if parent == nil {
		parent = template
	} else {
		signer = d.authority.PrivateKey
	}
	template.Subject = pkix.Name{CommonName: "clockbridge compose suite"}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		d.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		d.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// bundle writes a file of authorities: this machine's and ours.
func (d *docker) bundle() string {
	d.Helper()
	public, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		d.Fatal(err)
	}
	ours := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.authority.Certificate[0]})
	file := filepath.Join(d.TempDir(), "ca-certificates.crt")
	if err := os.WriteFile(file, append(public, ours...), 0o644); err != nil {
		d.Fatal(err)
	}
	return file
}

// standIn makes an image of files, directories and busybox, unless an earlier run has left it.
func (d *docker) standIn(name string, files map[string]string, changes ...string) {
	d.Helper()
	if _, err := d.try("", "docker", "image", "inspect", name); err == nil {
		return
	}
	args := []string{"import"}
	for _, c := range changes {
		args = append(args, "--change", c)
	}
	c := exec.Command("docker", append(args, "-", name)...)
	c.Env = d.env
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	in, err := c.StdinPipe()
	if err != nil {
		d.Fatal(err)
	}
	if err := c.Start(); err != nil {
		d.Fatal(err)
	}
	err = pack(in, files)
	in.Close()
	if ended := c.Wait(); err != nil || ended != nil {
		d.Fatalf("make image %s: %v, %v\n%s", name, err, ended, said.String())
	}
}

// pack writes an archive of files and directories, by their names in it, and of busybox with a link for each of its programs.
func pack(w io.Writer, files map[string]string) error {
	archive := tar.NewWriter(w)
	programs, err := exec.Command("busybox", "--list").Output()
	if err != nil {
		return err
	}
	for _, p := range strings.Fields(string(programs)) {
		if p == "busybox" {
			continue
		}
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + p, Linkname: "busybox"}); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp/", "root/"} {
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o777}); err != nil {
			return err
		}
	}
	if err := packTree(archive, "bin/busybox", "/bin/busybox"); err != nil {
		return err
	}
	for name, from := range files {
		if err := packTree(archive, name, from); err != nil {
			return err
		}
	}
	return archive.Close()
}

// packTree adds a file, or what a directory holds.
func packTree(archive *tar.Writer, name, from string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	return filepath.WalkDir(from, func(file string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() && !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		h.Name, h.Uid, h.Gid, h.Uname, h.Gname = path.Join(name, strings.TrimPrefix(file, from)), 0, 0, "", ""
		if err := archive.WriteHeader(h); err != nil || e.IsDir() {
			return err
		}
		in, err := os.Open(file)
		if err != nil {
			return err
		}
		defer in.Close()
		_, err = io.Copy(archive, in)
		return err
	})
}

// checkout copies what a clean checkout has of the files that docker compose uses.
func checkout(t *testing.T) string {
	t.Helper()
	root, dir := filepath.Join("..", ".."), filepath.Join(t.TempDir(), "clockbridge")
	for _, name := range []string{"bridge", "cmd", "deploy", "protime", "store"} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(root, name))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{".dockerignore", "Dockerfile", "docker-compose.yml", "go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
