package main

func benchNATS() {}
func benchSim()  {}
