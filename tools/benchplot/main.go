// Command benchplot draws a result of test/bench: SVG files beside it.
//
//	go -C tools run ./benchplot RESULT.json
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: benchplot RESULT.json")
		os.Exit(2)
	}
	if err := draw(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "benchplot:", err)
		os.Exit(1)
	}
}

// spread and result are what is read of test/bench's types of the same names.
type spread struct{ Min, Median, Max float64 }

type result struct {
	Rows []struct {
		ID     string
		Values map[string]spread
	}
}

func (r *result) value(id, name string) (spread, bool) {
	for _, x := range r.Rows {
		if x.ID == id {
			s, ok := x.Values[name]
			return s, ok
		}
	}
	return spread{}, false
}

func draw(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var r result
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	base := strings.TrimSuffix(path, filepath.Ext(path))
	for _, p := range []struct{ name, title, figure, axis string }{
		{"rate", "Rate into the guest", "gbps", "Gb/s"},
		{"guest", "The guest's CPU time", "cpu_guest", "seconds per GB"},
	} {
		if err := bars(&r, base+"-"+p.name+".svg", p.title, p.figure, p.axis); err != nil {
			return err
		}
	}
	return curve(&r, base+"-curve.svg")
}

var flows = []string{"1", "8", "64", "512"}

// series are what is side by side at each number of flows.
var series = []struct{ name, gro, kind string }{
	{"off", "off", "off"}, {"off, guest GRO", "on", "off"}, {"on", "off", "on"}, {"on, guest GRO", "on", "on"}, {"kernel, tuned", "off", "kernel-tuned"},
}

// bars draws one figure over flows, with the smallest and the largest repeat as a line on each bar.
func bars(r *result, path, title, figure, axis string) error {
	p := plot.New()
	p.Title.Text = title
	p.Y.Label.Text = axis
	p.Y.Min = 0
	p.Legend.Top = true
	width := vg.Points(13)
	for i, s := range series {
		values := make(plotter.Values, len(flows))
		whole := intervals{}
		for j, f := range flows {
			v, ok := r.value(fmt.Sprintf("receive/ipv4/gro=%s/flows=%s/%s", s.gro, f, s.kind), figure)
			values[j] = v.Median
			if ok {
				whole.XYs = append(whole.XYs, plotter.XY{X: float64(j), Y: v.Median})
				whole.YErrors = append(whole.YErrors, struct{ Low, High float64 }{v.Median - v.Min, v.Max - v.Median})
			}
		}
		b, err := plotter.NewBarChart(values, width)
		if err != nil {
			return err
		}
		b.Color = plotutil.Color(i)
		b.LineStyle.Width = 0
		b.Offset = width * vg.Length(i-len(series)/2)
		p.Add(b)
		p.Legend.Add(s.name, b)
		if len(whole.XYs) > 0 {
			e, err := plotter.NewYErrorBars(shifted{whole, float64(i-len(series)/2) * 0.111})
			if err != nil {
				return err
			}
			p.Add(e)
		}
	}
	names := make([]string, len(flows))
	for i, f := range flows {
		names[i] = f + " flows"
	}
	p.NominalX(names...)
	return p.Save(8*vg.Inch, 4*vg.Inch, path)
}

// intervals are medians with what lies below and above.
type intervals struct {
	plotter.XYs
	plotter.YErrors
}

// shifted moves intervals onto their bar.
type shifted struct {
	intervals
	by float64
}

func (s shifted) XY(i int) (x, y float64) {
	x, y = s.intervals.XY(i)
	return x + s.by, y
}

// curve draws the guest's time over segments in a frame.
func curve(r *result, path string) error {
	var points plotter.XYs
	for _, x := range r.Rows {
		if strings.Contains(x.ID, "/segments=") && x.Values["segments"].Median > 0 {
			points = append(points, plotter.XY{X: x.Values["segments"].Median, Y: x.Values["cpu_guest"].Median})
		}
	}
	if len(points) == 0 {
		return nil
	}
	p := plot.New()
	p.Title.Text = "The guest's CPU time over segments in a frame"
	p.X.Label.Text, p.Y.Label.Text = "segments a frame", "seconds per GB"
	p.Y.Min, p.X.Min = 0, 0
	if err := plotutil.AddLinePoints(p, "guest", points); err != nil {
		return err
	}
	return p.Save(6*vg.Inch, 4*vg.Inch, path)
}
